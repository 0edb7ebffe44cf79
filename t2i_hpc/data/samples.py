"""From positions of the stream to tensors: what the loader's workers do.

Every random choice (caption, words, crop, mirror) is drawn from (seed, position), so a sample
looks the same whichever worker of whichever rank makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from t2i_hpc.common.errors import UserError
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import encode_caption, pad
from t2i_hpc.data.images import Pixels, crop_and_flip, resize_shorter
from t2i_hpc.data.plan import Plan
from t2i_hpc.data.split import Split, stack


@dataclass(frozen=True)
class Failure:
    """A user's error on its way out of a worker, which would otherwise arrive as a traceback."""

    error: UserError


@dataclass(frozen=True)
class _Made:
    image: Pixels
    caption: str
    words: list[int]
    class_id: int
    key: str


class Samples(Dataset[Any]):
    """The fields of a :class:`t2i_hpc.common.step.Batch` for lists of positions.

    Args:
        split: where the samples are read.
        plan: which sample stands at which position.
        config: words, margin and flip.
        resolution: side of the images in pixels.
        seed: of captions and crops.
    """

    def __init__(
        self, split: Split, plan: Plan, config: DataConfig, resolution: int, seed: int
    ) -> None:
        self._split, self._plan, self._seed = split, plan, seed
        self._resolution, self._flip, self._words = resolution, config.flip, config.words
        self._load_size = round(resolution * config.margin)

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any] | Failure:
        """Return the batch of some positions, or the user's error that prevents it."""
        try:
            return self._batch(positions)
        except UserError as error:
            return Failure(error)

    def _batch(self, positions: Sequence[int]) -> dict[str, Any]:
        indices = self._plan.indices(positions).tolist()
        made = [self._make(index, place) for index, place in zip(indices, positions, strict=True)]
        tokens, lengths = pad([sample.words for sample in made], self._words)
        return {
            "images": stack(sample.image for sample in made),
            "tokens": torch.from_numpy(tokens),
            "lengths": torch.from_numpy(lengths),
            "classes": torch.tensor([sample.class_id for sample in made], dtype=torch.int64),
            "positions": torch.tensor(positions, dtype=torch.int64),
            "captions": [sample.caption for sample in made],
            "keys": [sample.key for sample in made],
        }

    def _make(self, index: int, position: int) -> _Made:
        stored = self._split.sample(index)
        rng = generator(self._seed, "caption of a training sample", position)
        caption = stored.captions[int(rng.integers(len(stored.captions)))]
        words = encode_caption(caption, self._split.vocabulary, self._words, rng)
        image = resize_shorter(self._split.decode(index, stored), self._load_size)
        rng = generator(self._seed, "crop of a training sample", position)
        image = crop_and_flip(image, self._resolution, rng, self._flip)
        return _Made(image, caption, words, stored.class_id, stored.key)
