"""The command `generate`: images for captions, with a trained run."""

from __future__ import annotations

import sys

from t2i_hpc.cli.command import Command
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import GenerateConfig
from t2i_hpc.sampling.caption_grid import choose_folder, generate_grid, request_hash, save_grid
from t2i_hpc.sampling.loading import load_run
from t2i_hpc.sampling.request import asked_rows, read_rows, rows_of_split
from t2i_hpc.training.world import choose_device


def generate(config: GenerateConfig) -> None:
    """Write a grid (captions × noise), its masks and what it was made of; print the paths."""
    asked = asked_rows(config)
    device = choose_device(config.device)
    trained = load_run(config.run, config.checkpoint, device=device, data=config.data.path)
    rows = asked or rows_of_split(trained.held_out, config)
    read = read_rows(rows, trained.vocabulary, trained.config.data.max_tokens, config.seed)
    identity = request_hash(trained, read, config)
    folder = choose_folder(trained.run, identity, config.output)
    about = {
        "asked": identity,
        "run": trained.run.name,
        "images_seen": trained.images_seen,
        "checkpoint_sha256": trained.checkpoint_sha256,
    }
    for note in dict.fromkeys(note for row in read for note in row.notes):
        say(note, sys.stderr)
    grid = generate_grid(trained, [row.caption for row in read], config)
    for path in save_grid(grid, folder, read, config, about):
        say(path)


COMMAND = Command(
    "generate",
    "Generates images for captions with a trained run: rows are captions, columns noise. Words in\n"
    "braces are swapped: 'a {red,blue} bird' makes a row for each. Writes pictures.png, masks.png\n"
    "(all masks of each row's first image), pairs.png (each image beside its last mask) and\n"
    "pictures.json into RUN/generated/<hash of the request>.",
    GenerateConfig,
    generate,
    (
        "python -m t2i_hpc.generate run=runs/demo-1a2b3c4d columns=6",
        "python -m t2i_hpc.generate run=runs/demo-1a2b3c4d "
        "'captions=[\"a 3d emoji of a {red,blue,yellow} heart\"]'",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
