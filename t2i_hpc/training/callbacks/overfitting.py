"""Whether a discriminator knows its training images by heart, measured beside each sample grid.

Two heuristics of ADA (Karras et al., NeurIPS 2020, Eq. 1), of images as they are, in evaluation
mode: ``real_sign`` is r_t, the mean sign of the logits of training images; ``held_out_gap`` is r_v,
0 where held-out images get the logits of training images, 1 where they get those of generated ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.data.storage.fetching import is_remote
from t2i_hpc.sampling.request import encode_captions
from t2i_hpc.systems.base import GAN

_PAIRS = 64  # of each split
_TOGETHER = 16  # images that go through the discriminator at a time


class Pairs(NamedTuple):
    """Images uint8 (N, 3, R, R) with captions: tokens (N, T) and lengths (N,)."""

    images: Tensor
    tokens: Tensor
    lengths: Tensor


class Overfitting:
    """Compares a GAN's logits of training and of held-out pairs, the same each time.

    They are read when they are first asked for, so rank 0 alone has them. Training pairs of
    tars without a manifest are not known: there is then no gap, and no sign.
    """

    def __init__(self, config: TrainConfig, held_out: Split, system: GAN) -> None:
        self.config, self.held_out, self.system = config, held_out, system
        self._pairs: tuple[Pairs, Pairs] | None = None

    def __call__(self, generated: Pairs) -> dict[str, float]:
        """Return ``real_sign`` and ``held_out_gap``; `generated` are images with their captions."""
        if self.config.data.reader != "indexed":
            return {}
        trained, held_out = self._read()
        logits = self._logits(trained)
        means = [float(self._logits(pairs).mean()) for pairs in (held_out, generated)]
        return {"real_sign": float(logits.sign().mean()), **gap(float(logits.mean()), *means)}

    def _read(self) -> tuple[Pairs, Pairs]:
        if self._pairs is None:
            data = self.config.data
            trained = Split.open(data, data.train_split, check_tars=False)
            self._pairs = self._of(trained), self._of(self.held_out)
        return self._pairs

    def _of(self, split: Split) -> Pairs:
        """Take pairs evenly from a split; from its beginning where each shard is a download."""
        count = min(_PAIRS, split.count)
        spread = 1 if is_remote(self.config.data.path, "data.path") else split.count // count
        numbers = [place * spread for place in range(count)]
        captions = [split.caption(number, self.config.seed)[1] for number in numbers]
        encoded = encode_captions(
            captions, split.vocabulary, self.config.data.max_tokens, self.config.seed
        )
        return Pairs(split.evaluation_images(numbers, self.system.resolution), *encoded)

    def _logits(self, pairs: Pairs) -> Tensor:
        device = next(self.system.modules.parameters()).device
        parts = zip(*(value.split(_TOGETHER) for value in pairs), strict=True)
        found = [self.system.pair_logits(*(v.to(device) for v in part)).cpu() for part in parts]
        return torch.cat(found).double()


def gap(trained: float, held_out: float, generated: float) -> dict[str, float]:
    """Return ADA's r_v of mean logits; none where training images look generated, or on NaN."""
    if not trained > generated or not math.isfinite(held_out):
        return {}
    return {"held_out_gap": (trained - held_out) / (trained - generated)}
