"""t2i_hpc: distributed training and evaluation of text-to-image GANs on HPC clusters."""

__version__ = "0.1.0"
