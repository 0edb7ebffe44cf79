"""The grids that a run writes while it trains: the same captions and noise each time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torch import Tensor

from t2i_hpc.common.files import write_json
from t2i_hpc.common.seeds import noise
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.sampling.grids import mask_grid, picture_grid, save_picture
from t2i_hpc.sampling.request import encode_captions, token_texts
from t2i_hpc.sampling.rules import to_uint8
from t2i_hpc.sampling.stages import staged
from t2i_hpc.sampling.trained_run import generate_in_batches
from t2i_hpc.systems.base import GAN, TextToImageSystem
from t2i_hpc.training.callbacks.caption_sensitivity import (
    SensitivityRecord,
    caption_sensitivity,
)
from t2i_hpc.training.callbacks.overfitting import Overfitting, Pairs
from t2i_hpc.training.progress import ProgressLine


class SampleGrids:
    """Writes ``samples/<images>.png`` and what else a system shows of its pictures into a run.

    Rows are captions of the test split, evenly spread over it; columns are noise vectors. Of the
    first picture of each row ``masks/`` has the masks, ``stages/`` the images of all stages and
    ``words/`` the words that they read.
    """

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        split: Split,
        system: TextToImageSystem,
        line: ProgressLine,
    ) -> None:
        rows = min(config.engine.sample_rows, split.count)
        self.run, self.system, self.line = run, system, line
        self.sensitivities = SensitivityRecord(run)
        known = isinstance(system, GAN) and system.has_pair_logits
        self.overfitting = Overfitting(config, split, cast(GAN, system)) if known else None
        self.columns = config.engine.sample_columns
        numbers = [row * split.count // rows for row in range(rows)]
        self.captions = [split.caption(number, config.seed)[1] for number in numbers]
        tokens, lengths = encode_captions(
            self.captions, split.vocabulary, config.data.max_tokens, config.seed
        )
        self.words = token_texts(tokens, lengths, split.vocabulary)
        self.tokens = tokens.repeat_interleave(self.columns, 0)
        self.lengths = lengths.repeat_interleave(self.columns, 0)
        columns = noise(config.seed, "sample noise", range(self.columns), system.noise_width)
        self.noise = columns.repeat(rows, 1)

    def __call__(self, images_seen: int) -> Mapping[str, float]:
        """Write the grids of the system as it is now; return what was measured of them."""
        name = f"{images_seen:010d}.png"
        pictures = generate_in_batches(self.system, self.tokens, self.lengths, self.noise)
        images = to_uint8(pictures.images[-1])
        write_json(self.run / "samples" / "captions.json", self.captions)
        save_picture(picture_grid(images, self.columns, self.captions), self.run / "samples" / name)
        first = slice(None, None, self.columns)
        if pictures.masks:
            masks = [mask[first].cpu() for mask in pictures.masks]
            save_picture(mask_grid(images[first], masks), self.run / "masks" / name)
        for folder, grid in staged(pictures, first, self.words).grids(self.captions).items():
            save_picture(grid, self.run / folder / name)
        measured = self._sensitivity(images_seen, pictures.images[-1])
        if self.overfitting is not None:
            measured |= self.overfitting(Pairs(images.cpu(), self.tokens, self.lengths))
        return measured

    def _sensitivity(self, images_seen: int, images: Tensor) -> dict[str, float]:
        sensitivity = caption_sensitivity(images, self.columns)
        if sensitivity is None:
            return {}
        self.line.say(self.sensitivities.add(images_seen, sensitivity))
        return {"caption_sensitivity": sensitivity}

    def finished(self, images_seen: int) -> bool:
        """Never: a generator trains as long as it is told to."""
        return False
