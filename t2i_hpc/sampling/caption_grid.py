"""Images for people: rows of captions × columns of noise, their masks, and what they were made of.

Every column has one noise vector, so a column shows what the text changes and a row what the
noise changes. The files are in a folder of their own, named by a hash of the request: the same
request writes the same files, another one touches none of them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import sha256_of_json, write_json
from t2i_hpc.common.terminal import say
from t2i_hpc.config.evaluation import GenerationConfig
from t2i_hpc.config.tasks import GenerateConfig
from t2i_hpc.models import GeneratedImages
from t2i_hpc.sampling.grids import (
    cell_box,
    mask_grid,
    paired_grid,
    picture_grid,
    save_picture,
)
from t2i_hpc.sampling.loading import load_run
from t2i_hpc.sampling.request import (
    ReadRow,
    asked_rows,
    read_rows,
    refuse_given,
    rows_of_split,
)
from t2i_hpc.sampling.stages import staged
from t2i_hpc.sampling.trained_run import TrainedRun, first_of, joined

RECORD = "pictures.json"


@dataclass(frozen=True)
class CaptionGrid:
    """Generated images row by row.

    Attributes:
        images: uint8 (rows·columns, 3, R, R).
        last_masks: (rows·columns, 1, h, w) in [0, 1], of the last block; None without masks.
        firsts: the first picture of each row: images of all stages, masks of all blocks and
            attention, each (rows, …).
    """

    images: Tensor
    last_masks: Tensor | None
    firsts: GeneratedImages


def write_grid(config: GenerateConfig, device: torch.device) -> list[Path]:
    """Generate and write the grid of a configuration; return the paths of its files.

    Raises:
        UserError: captions, run or folder that cannot be.
    """
    bulk = ("batch_size", "shards", "shard")
    refuse_given(config, bulk, "belongs to images_per_caption=, which writes files: name it too")
    asked = asked_rows(config)
    trained = load_run(
        config.run,
        config.checkpoint,
        device=device,
        precision=config.precision,
        data=config.data.path,
    )
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
    return save_grid(grid, folder, read, config, about)


def request_hash(trained: TrainedRun, rows: Sequence[ReadRow], config: GenerationConfig) -> str:
    """Return the identity of a grid: 12 hexadecimal digits of all that decides it."""
    request = {
        "checkpoint": trained.checkpoint_sha256,
        "rows": [[row.caption, row.asked] for row in rows],
        "columns": config.columns,
        "seed": config.seed,
        "masks": config.masks,
        **({} if config.precision == "float32" else {"precision": config.precision}),
    }
    return sha256_of_json(request)[:12]


def choose_folder(run: Path, request: str, output: str) -> Path:
    """Return the folder of a grid: `output`, or one in the run named by the request's hash.

    Raises:
        ConfigurationError: `output` is a file, or holds another grid.
    """
    if not output:
        return run / "generated" / request
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"output={folder} is a file: name a folder")
    if (folder / RECORD).exists() and _request_of(folder / RECORD) != request:
        raise ConfigurationError(
            f"output={folder} holds other images ({RECORD}): name another folder, or leave "
            "output out for one of its own"
        )
    return folder


def generate_grid(
    trained: TrainedRun, captions: Sequence[str], config: GenerationConfig
) -> CaptionGrid:
    """Generate a row of images for each caption, the same noise down a column."""
    images, last, firsts = [], [], []
    for caption in captions:
        row = trained.generate(caption, seed=config.seed, images_per_caption=config.columns)
        images.append(row.images)
        last += row.masks[-1:]
        firsts.append(first_of(GeneratedImages(row.stages, row.masks, row.attention)))
    return CaptionGrid(torch.cat(images), torch.cat(last) if last else None, joined(firsts))


def save_grid(
    grid: CaptionGrid, folder: Path, rows: Sequence[ReadRow], config: GenerationConfig, about: Any
) -> list[Path]:
    """Write the record and the pictures of a grid; return their paths.

    ``pictures.png`` has rows of captions × columns of noise; ``masks.png`` the masks of all
    blocks for the first picture of each row (SSA-GAN Fig. 5); ``pairs.png`` every picture with
    its last mask on its left (Figs. 6 and 11); ``stages.png`` the images of all stages and
    ``words.png`` the words that they attend to, for the first picture of each row (AttnGAN Fig. 4);
    ``pictures.json`` what they were made of.

    Args:
        grid: what :func:`generate_grid` returned.
        folder: where to write.
        rows: the captions of the rows.
        config: columns, seed, masks.
        about: where the images come from, for the record.
    """
    captions = [row.caption for row in rows]
    pictures = {"pictures.png": picture_grid(grid.images, config.columns, captions)}
    if config.masks and grid.last_masks is not None:
        first = grid.images[:: config.columns]
        pictures["masks.png"] = mask_grid(first, grid.firsts.masks, captions)
        pictures["pairs.png"] = paired_grid(grid.images, grid.last_masks, config.columns, captions)
    words = [row.words for row in rows]
    shown = staged(grid.firsts, slice(None), words).grids(captions)
    pictures |= {f"{name}.png": picture for name, picture in shown.items()}
    record = {
        **about,
        "captions": captions,
        "columns": config.columns,
        "seed": config.seed,
        "files": sorted(pictures),
        "rows": [asdict(row) for row in rows],
        "pictures": _pictures(grid.images, pictures["pictures.png"], rows, config),
    }
    # First, so that an interrupted request is recognized when it is made again.
    write_json(folder / RECORD, record)
    for name, picture in pictures.items():
        save_picture(picture, folder / name)
    return [folder / name for name in (*pictures, RECORD)]


def _pictures(
    images: Tensor, grid: Image.Image, rows: Sequence[ReadRow], config: GenerationConfig
) -> list[dict[str, Any]]:
    """Return one entry an image: what it was made of, its pixels' hash, its place."""
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


def _request_of(path: Path) -> object:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("asked") if isinstance(content, dict) else None
