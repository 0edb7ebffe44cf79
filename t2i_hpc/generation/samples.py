"""The grids that a run writes while it trains: the same captions and noise each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from t2i_hpc.common.files import write_json
from t2i_hpc.common.seeds import noise
from t2i_hpc.common.step import Painter, Pictures
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.generation.captions import encode_captions, spelt
from t2i_hpc.generation.trained import to_uint8
from t2i_hpc.reporting.grids import mask_grid, picture_grid, save_picture
from t2i_hpc.reporting.stages import Staged

_AT_ONCE = 16


class SampleGrids:
    """Writes ``samples/<images>.png`` and what else a system shows of its pictures into a run.

    Rows are captions of the test split, evenly spread over it; columns are noise vectors. Of the
    first picture of each row ``masks/`` has the masks, ``stages/`` the images of all stages and
    ``words/`` the words that they read.
    """

    def __init__(self, run: Path, config: TrainConfig, split: Split, system: Painter) -> None:
        rows = min(config.engine.sample_rows, split.count)
        self.run, self.system = run, system
        self.columns = config.engine.sample_columns
        numbers = [row * split.count // rows for row in range(rows)]
        self.captions = [split.caption(number, config.seed)[1] for number in numbers]
        tokens, lengths = encode_captions(
            self.captions, split.vocabulary, config.data.words, config.seed
        )
        self.words = spelt(tokens, lengths, split.vocabulary)
        self.tokens = tokens.repeat_interleave(self.columns, 0)
        self.lengths = lengths.repeat_interleave(self.columns, 0)
        columns = noise(config.seed, "sample noise", range(self.columns), system.noise_width)
        self.noise = columns.repeat(rows, 1)

    def __call__(self, images_seen: int) -> None:
        """Write the grids of the system as it is now."""
        name = f"{images_seen:010d}.png"
        pictures = draw_in_parts(self.system, self.tokens, self.lengths, self.noise)
        images = to_uint8(pictures.images[-1])
        write_json(self.run / "samples" / "captions.json", self.captions)
        save_picture(picture_grid(images, self.columns, self.captions), self.run / "samples" / name)
        first = slice(None, None, self.columns)
        if pictures.masks:
            masks = [mask[first].cpu() for mask in pictures.masks]
            save_picture(mask_grid(images[first], masks), self.run / "masks" / name)
        for folder, grid in staged(pictures, first, self.words).grids(self.captions).items():
            save_picture(grid, self.run / folder / name)


def staged(pictures: Pictures, rows: slice, words: Sequence[Sequence[str]]) -> Staged:
    """Return what the stages made of some pictures, whose captions have these words."""
    return Staged(
        [to_uint8(image[rows]) for image in pictures.images],
        [maps[rows] for maps in pictures.attention],
        words,
    )


def draw_in_parts(
    system: Painter, tokens: torch.Tensor, lengths: torch.Tensor, latent: torch.Tensor
) -> Pictures:
    """Draw any number of pictures, a few at a time to bound memory; results on the CPU."""
    device = next(system.modules.parameters()).device
    parts: list[Pictures] = []
    for start in range(0, len(tokens), _AT_ONCE):
        rows = [value[start : start + _AT_ONCE].to(device) for value in (tokens, lengths, latent)]
        parts.append(system.draw(*rows))
    return joined(parts)


def first_of(pictures: Pictures) -> Pictures:
    """Return the first of some pictures alone."""
    return Pictures(
        images=[image[:1] for image in pictures.images],
        masks=[mask[:1] for mask in pictures.masks],
        attention=[maps[:1] for maps in pictures.attention],
    )


def joined(parts: Sequence[Pictures]) -> Pictures:
    """Return pictures one after the other, on the CPU."""
    return Pictures(
        images=_joined([part.images for part in parts]),
        masks=_joined([part.masks for part in parts]),
        attention=_joined([part.attention for part in parts]),
    )


def _joined(parts: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.cat(pieces).cpu() for pieces in zip(*parts, strict=True)]
