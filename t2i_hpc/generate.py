"""The command `generate`: images for captions, with a trained run."""

from __future__ import annotations

import sys

from t2i_hpc.cli.command import Command
from t2i_hpc.common.terminal import say
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.config.tasks import GenerateConfig
from t2i_hpc.training.world import choose_device, joined_world

_LONGEST_WAIT_SECONDS = 24 * 3600.0  # of a rank whose images are there, for the others


def generate(config: GenerateConfig) -> None:
    """Write a grid, or files of each caption's images; print what was written."""
    from t2i_hpc.sampling.bulk import BulkJob, generate_files
    from t2i_hpc.sampling.caption_grid import write_grid

    if config.images_per_caption is None:
        for line in write_grid(config, choose_device(config.device)):
            say(line)
        return
    job = BulkJob.of(config)  # what it refuses needs no other rank
    engine = EngineConfig(
        device=config.device, threads=config.threads, timeout=_LONGEST_WAIT_SECONDS
    )
    with joined_world(engine, "lower batch_size") as world:
        ranks, barrier = world.size, world.barrier
        generate_files(config, job, world.device, rank=world.rank, ranks=ranks, barrier=barrier)


COMMAND = Command(
    "generate",
    "Generates images for captions with a trained run: rows are captions, columns noise. Words in\n"
    "braces are swapped: 'a {red,blue} bird' makes a row for each. Writes pictures.png, masks.png\n"
    "(all masks of each row's first image), pairs.png (each image beside its last mask) and\n"
    "pictures.json into RUN/generated/<hash of the request>. With images_per_caption=N it writes\n"
    "N PNG files of each caption instead, and index.jsonl; ranks and shards share the work, and\n"
    "the same command makes what is missing.",
    GenerateConfig,
    generate,
    (
        "python -m t2i_hpc.generate run=runs/demo-1a2b3c4d columns=6",
        "python -m t2i_hpc.generate run=runs/demo-1a2b3c4d "
        "'captions=[\"a 3d emoji of a {red,blue,yellow} heart\"]'",
        "python -m t2i_hpc.generate run=runs/demo-1a2b3c4d captions_file=captions.txt "
        "images_per_caption=4 output=images",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
