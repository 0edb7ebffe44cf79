"""Door: pre-train DAMSM's text and image encoders."""

from __future__ import annotations

import sys

from t2i_hpc.config.door import Door
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.engine.stop import STOPPED_EXIT_CODE
from t2i_hpc.train import locate, train

DOOR = Door(
    "pretrain",
    "Trains the text and image encoders on real pairs by DAMSM: the same loop, checkpoints and\n"
    "resume as training. The run's text_encoder.safetensors is what training takes as\n"
    f"system.text_encoder.weights. Ctrl-C saves and leaves with exit code {STOPPED_EXIT_CODE}.",
    TrainConfig,
    train,
    (
        "python -m t2i_hpc.pretrain experiment=demo_encoders",
        "torchrun --nproc-per-node 4 -m t2i_hpc.pretrain data=coco system.resolution=256",
    ),
    locate,
)

if __name__ == "__main__":
    sys.exit(DOOR.open())
