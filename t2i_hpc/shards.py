"""Door: turn images and captions into shards.

python -m t2i_hpc.shards source=folder images=DIR output=shards/mine
"""

from __future__ import annotations

import sys
from pathlib import Path

from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.config.door import Door


def run(config: ShardsConfig) -> None:
    """Build one split and say what it holds."""
    from t2i_hpc.data.captions import Vocabulary
    from t2i_hpc.data.manifest import VOCABULARY
    from t2i_hpc.data.writer import write_shards

    manifest = write_shards(config)
    words = Vocabulary.load(Path(config.output) / VOCABULARY).size
    print(
        f"{manifest.folder}: {manifest.sample_count:,} samples in {len(manifest.shards):,} shards, "
        f"{manifest.bytes:,} bytes; vocabulary of {words:,} words"
    )


DOOR = Door(
    task="shards",
    summary="Convert one split of a data set to tar shards with a manifest and an index.",
    config=ShardsConfig,
    run=run,
    examples=(
        "python -m t2i_hpc.shards source=coco images=coco/train2014 "
        "captions=coco/annotations/captions_train2014.json output=shards/coco split=train",
        "python -m t2i_hpc.shards source=cub images=CUB_200_2011 captions=text "
        "output=shards/cub split=test",
        "python -m t2i_hpc.shards source=folder images=my_images output=shards/mine "
        "shard_samples=500 format=webp",
    ),
)

if __name__ == "__main__":
    sys.exit(DOOR.open())
