"""t2i_hpc: distributed training and evaluation of text-to-image GANs on HPC clusters."""

import os

from t2i_hpc.common.process import wait_briefly

__version__ = "0.2.0"

wait_briefly(os.environ)  # here, because no module of ours can import torch before this one
