"""A drawing for people: rows of captions × columns of noise, its masks, and what was drawn.

Every column has one noise vector, so a column shows what the text changes and a row what the
noise changes. The files of a drawing lie in a folder of their own, named by a hash of what was
asked: asking again writes the same files, asking for something else touches none of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import sha256_of_json, write_json
from t2i_hpc.common.seeds import noise
from t2i_hpc.config.evaluation import GenerationConfig
from t2i_hpc.models.outputs import GeneratedImages
from t2i_hpc.sampling.grids import (
    cell_box,
    mask_grid,
    paired_grid,
    picture_grid,
    save_picture,
)
from t2i_hpc.sampling.request import ReadRow, encode_captions
from t2i_hpc.sampling.stages import staged
from t2i_hpc.sampling.trained_run import TrainedRun, draw_in_parts, first_of, joined, to_uint8

RECORD = "pictures.json"


@dataclass(frozen=True)
class Drawing:
    """GeneratedImages row by row.

    Attributes:
        images: uint8 (rows·columns, 3, R, R).
        last_masks: (rows·columns, 1, h, w) in [0, 1], of the last block; None without masks.
        firsts: the first picture of each row: images of all stages, masks of all blocks and
            attention, each (rows, …).
    """

    images: Tensor
    last_masks: Tensor | None
    firsts: GeneratedImages


def asked_hash(trained: TrainedRun, rows: Sequence[ReadRow], config: GenerationConfig) -> str:
    """Return the identity of a drawing: 12 hexadecimal digits of all that decides it."""
    asked = {
        "checkpoint": trained.checkpoint_sha256,
        "rows": [[row.caption, row.asked] for row in rows],
        "columns": config.columns,
        "seed": config.seed,
        "masks": config.masks,
    }
    return sha256_of_json(asked)[:12]


def choose_folder(run: Path, asked: str, output: str) -> Path:
    """Return the folder of a drawing: `output`, or one in the run with the drawing's hash.

    Raises:
        ConfigurationError: `output` is a file, or holds another drawing.
    """
    if not output:
        return run / "generated" / asked
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"output={folder} is a file: name a folder")
    if (folder / RECORD).exists() and _asked_of(folder / RECORD) != asked:
        raise ConfigurationError(
            f"output={folder} holds another drawing ({RECORD}): name another folder, or leave "
            "output out for one of its own"
        )
    return folder


def draw(trained: TrainedRun, captions: Sequence[str], config: GenerationConfig) -> Drawing:
    """Draw a row of pictures for each caption, the same noise down a column."""
    tokens, lengths = encode_captions(
        captions, trained.vocabulary, trained.config.data.max_tokens, config.seed
    )
    latent = noise(config.seed, "noise", range(config.columns), trained.system.noise_width)
    images, last, parts = [], [], []
    for own, length in zip(tokens, lengths, strict=True):
        row = draw_in_parts(
            trained.system, own.expand(len(latent), -1), length.expand(len(latent)), latent
        )
        images.append(to_uint8(row.images[-1]))
        last += list(row.masks[-1:])
        parts.append(first_of(row))
    return Drawing(torch.cat(images), torch.cat(last) if last else None, joined(parts))


def save_drawing(
    drawing: Drawing, folder: Path, rows: Sequence[ReadRow], config: GenerationConfig, about: Any
) -> list[Path]:
    """Write the record and the grids of a drawing; return their paths.

    ``pictures.png`` has rows of captions × columns of noise; ``masks.png`` the masks of all
    blocks for the first picture of each row (SSA-GAN Fig. 5); ``pairs.png`` every picture with
    its last mask on its left (Figs. 6 and 11); ``stages.png`` the images of all stages and
    ``words.png`` the words that they read, for the first picture of each row (AttnGAN Fig. 4);
    ``pictures.json`` what was drawn.

    Args:
        drawing: what :func:`draw` returned.
        folder: where to write.
        rows: the captions of the rows.
        config: columns, seed, masks.
        about: where the pictures come from, for the record.
    """
    captions = [row.caption for row in rows]
    grids = {"pictures.png": picture_grid(drawing.images, config.columns, captions)}
    if config.masks and drawing.last_masks is not None:
        first = drawing.images[:: config.columns]
        grids["masks.png"] = mask_grid(first, drawing.firsts.masks, captions)
        grids["pairs.png"] = paired_grid(
            drawing.images, drawing.last_masks, config.columns, captions
        )
    words = [row.words for row in rows]
    shown = staged(drawing.firsts, slice(None), words).grids(captions)
    grids |= {f"{name}.png": grid for name, grid in shown.items()}
    record = {
        **about,
        "captions": captions,
        "columns": config.columns,
        "seed": config.seed,
        "files": sorted(grids),
        "rows": [asdict(row) for row in rows],
        "pictures": _pictures(drawing.images, grids["pictures.png"], rows, config),
    }
    # First, so that a drawing that was cut off is known again when it is asked for again.
    write_json(folder / RECORD, record)
    for name, grid in grids.items():
        save_picture(grid, folder / name)
    return [folder / name for name in (*grids, RECORD)]


def _pictures(
    images: Tensor, grid: Image.Image, rows: Sequence[ReadRow], config: GenerationConfig
) -> list[dict[str, Any]]:
    """Return one entry a picture: what it was made of, its pixels' hash, where it lies."""
    listed = []
    for place, image in enumerate(images):
        row, column = divmod(place, config.columns)
        pixels = image.permute(1, 2, 0).contiguous().numpy().tobytes()
        listed.append(
            {
                "row": row,
                "column": column,
                "caption": rows[row].caption,
                "seed": config.seed,
                "noise": column,
                "box": cell_box(grid, image, row, column),
                "sha256": hashlib.sha256(pixels).hexdigest(),
            }
        )
    return listed


def _asked_of(path: Path) -> object:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("asked") if isinstance(content, dict) else None
