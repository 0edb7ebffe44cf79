"""Turn images and captions into shards, and check shards that are there.

python -m t2i_hpc.shards source=folder images=DIR output=shards/mine
python -m t2i_hpc.shards verify shards/mine
"""

from __future__ import annotations

import sys

from t2i_hpc.cli.command import Command, is_path
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.commands import SUBCOMMANDS, build, keys_of, run_subcommand


class _ShardsCommand(Command[ShardsConfig]):
    """Runs a subcommand where the first argument is no ``key=value``, or else builds a split."""

    def _dispatch(self, words: list[str]) -> int:
        if not words or "=" in words[0] or words[0].startswith("-") or {"--help", "-h"} & {*words}:
            return super()._dispatch(words)
        keys = keys_of(words[0])
        folders = [one for one in words[1:] if is_path(one, keys)]
        run_subcommand(words[0], folders, [one for one in words[1:] if one not in folders])
        return 0


COMMAND = _ShardsCommand(
    task="shards",
    summary="Convert one split of a data set to tar shards with a manifest and an index.\n"
    "An interrupted build resumes when the same command is given again.\n\n"
    "Commands (DIR of verify, info, show, sheet: a split or a folder of splits; or demo):\n"
    + "\n".join(f"  {one.usage}\n      {one.summary}" for one in SUBCOMMANDS.values()),
    config=ShardsConfig,
    run=build,
    examples=(
        "python -m t2i_hpc.shards source=coco images=coco/train2014 "
        "captions=coco/annotations/captions_train2014.json output=shards/coco split=train",
        "python -m t2i_hpc.shards source=cub images=CUB_200_2011 captions=text "
        "output=shards/cub split=test",
        "python -m t2i_hpc.shards source=folder images=my_images output=shards/mine format=webp",
        "python -m t2i_hpc.shards source=folder images=faces/images captions=faces/text "
        "output=shards/faces test_fraction=0.1",
        "python -m t2i_hpc.shards source=webdataset images=my_tars output=shards/mine",
        "python -m t2i_hpc.shards source=pickles images=birds/CUB_200_2011/images "
        "captions=birds/captions.pickle output=shards/birds split=train",
        "python -m t2i_hpc.shards source=folder images=my_images output=shards/mine "
        "partition=$SLURM_ARRAY_TASK_ID/16  (array 1-16, then merge)",
        "python -m t2i_hpc.shards vocabulary shards/coco "
        "captions=captions_train2014.json,captions_val2014.json",
        "python -m t2i_hpc.shards vocabulary shards/cub from=birds/captions.pickle",
        "python -m t2i_hpc.shards verify shards/mine",
        "python -m t2i_hpc.shards info shards/mine output=histograms.png",
        "python -m t2i_hpc.shards show shards/mine/train number=7 output=seven.png",
        "python -m t2i_hpc.shards sheet shards/mine/train output=sheet.png",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
