"""Door: which run directory a training command belongs to."""

from __future__ import annotations

import sys

from t2i_hpc.config.door import Door
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.engine.run_directory import run_folder


def where(config: TrainConfig) -> None:
    """Print the run directory, whether it exists yet or not."""
    training = Split.open(config.data, config.data.train_split)
    print(run_folder(config, training.manifest.digest))


DOOR = Door(
    "where",
    "Prints the run directory of a training command: for scripts that go on with the run.",
    TrainConfig,
    where,
    (
        "python -m t2i_hpc.where experiment=demo",
        "python -m t2i_hpc.evaluate evaluation=demo run=$(python -m t2i_hpc.where experiment=demo)",
    ),
    composed="train",
)

if __name__ == "__main__":
    sys.exit(DOOR.open())
