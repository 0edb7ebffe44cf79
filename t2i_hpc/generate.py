"""Door: pictures for captions, with a trained run."""

from __future__ import annotations

import sys
from pathlib import Path

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import write_json
from t2i_hpc.common.seeds import noise
from t2i_hpc.config.door import Door
from t2i_hpc.config.tasks import GenerateConfig
from t2i_hpc.data.split import Split
from t2i_hpc.engine.world import choose_device
from t2i_hpc.generation.captions import encode_captions
from t2i_hpc.generation.samples import draw_in_parts
from t2i_hpc.generation.trained import TrainedRun, to_uint8
from t2i_hpc.reporting.grids import mask_grid, picture_grid, save_picture


def generate(config: GenerateConfig) -> None:
    """Write a grid (captions × noise), its masks and what was drawn."""
    device = choose_device(config.device)
    trained = TrainedRun.open(Path(config.run), config.checkpoint, device)
    split = trained.held_out
    captions = choose_captions(config, split)
    tokens, lengths = encode_captions(
        captions, split.vocabulary, trained.config.data.words, config.seed
    )
    columns = noise(config.seed, "noise", range(config.columns), trained.system.noise_width)
    pictures = draw_in_parts(
        trained.system,
        tokens.repeat_interleave(config.columns, 0),
        lengths.repeat_interleave(config.columns, 0),
        columns.repeat(len(captions), 1),
    )
    folder = Path(config.output) if config.output else trained.run / "generated"
    images = to_uint8(pictures.images[-1])
    save_picture(picture_grid(images, config.columns, captions), folder / "pictures.png")
    written = ["pictures.png"]
    if config.masks and pictures.masks:
        first = slice(None, None, config.columns)
        masks = [mask[first] for mask in pictures.masks]
        save_picture(mask_grid(images[first], masks), folder / "masks.png")
        written.append("masks.png")
    write_json(
        folder / "pictures.json",
        {
            "captions": captions,
            "columns": config.columns,
            "seed": config.seed,
            "run": trained.run.name,
            "images_seen": trained.images_seen,
            "checkpoint_sha256": trained.checkpoint_sha256,
        },
    )
    for name in [*written, "pictures.json"]:
        print(folder / name)


def choose_captions(config: GenerateConfig, split: Split) -> list[str]:
    """Return the captions asked for, or some of the test split; report unknown words.

    Raises:
        ConfigurationError: a caption of which no word is known.
    """
    if not config.captions:
        rows = min(config.rows, split.count)
        return [split.caption(row * split.count // rows, config.seed)[1] for row in range(rows)]
    for caption in config.captions:
        unknown = split.vocabulary.unknown(caption)
        if not split.vocabulary.encode(caption):
            raise ConfigurationError(
                f"no word of the caption {caption!r} is in the run's vocabulary of "
                f"{split.vocabulary.size:,} words; use words of its training captions"
            )
        if unknown:
            print(f"unknown words left out of {caption!r}: {', '.join(unknown)}", file=sys.stderr)
    return list(config.captions)


DOOR = Door(
    "generate",
    "Draws pictures for captions with a trained run: rows are captions, columns noise.\n"
    "Writes pictures.png, masks.png and pictures.json.",
    GenerateConfig,
    generate,
    (
        "python -m t2i_hpc.generate run=runs/demo-1a2b3c4d columns=6",
        "python -m t2i_hpc.generate run=runs/demo-1a2b3c4d "
        "'captions=[\"a 3d emoji of a red heart\"]'",
    ),
)

if __name__ == "__main__":
    sys.exit(DOOR.open())
