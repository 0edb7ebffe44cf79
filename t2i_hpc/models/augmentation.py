"""Augmentation of what a discriminator sees, for small data sets (DiffAugment, ADA).

Real, generated and penalized images are changed alike, differentiably, so that the discriminator
cannot learn the training images by heart and the generator does not learn the changes
(Zhao et al., NeurIPS 2020). How an image is changed is a function of its sample's own noise row
alone, so that any number of ranks and micro-batches trains the same; no random number is drawn.

Changes are the paper's: brightness ± 0.5 of a range of 2, saturation × 0 to 2, contrast × 0.5 to
1.5; shifts of up to an eighth of the side; a square of half the side cut out. Zeros, mid-gray, are
where nothing is left. ``flip`` mirrors half of the images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2i_hpc.common.collectives import mean_over_ranks, world_size

KINDS = ("color", "translation", "cutout", "flip")
_EACH = 4  # random numbers of a kind: whether it is applied, and up to three of how
_SHIFT, _CUT = 0.125, 0.5  # of the side
_MIX, _STEP = 0x2545F4914F6CDD1D, 0x1E3779B97F4A7C15


class Augmentation(nn.Module):
    """Changes of images whose probability may follow the overfitting of a discriminator (ADA).

    Args:
        kinds: of :data:`KINDS`; none: images stay.
        probability: of each change; where it begins if it is adapted.
        target: the mean sign of real logits r_t that it is adapted by: up above it, down below;
            None: it stays.
        images: in which it moves from 0 to 1 (ADA: 500,000).
    """

    probability: Tensor
    change: Tensor  # of the probability, due when the next step begins: a step has one

    def __init__(
        self,
        kinds: Sequence[str],
        probability: float = 1.0,
        target: float | None = None,
        images: int = 500_000,
    ) -> None:
        super().__init__()
        self.kinds, self.target, self.images = tuple(kinds), target, images
        self.register_buffer("probability", torch.tensor(float(probability)))
        self.register_buffer("change", torch.tensor(0.0))

    @property
    def adapts(self) -> bool:
        """Whether the probability moves, so that a checkpoint must hold it."""
        return bool(self.kinds) and self.target is not None

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return images (B, 3, H, W) changed by their rows of `noise` (B, Z)."""
        return augment(images, noise, self.kinds, self.probability) if self.kinds else images

    def begin_step(self) -> None:
        """Let the probability move by what the step before has found; no sync."""
        if self.adapts:
            self.probability.add_(self.change).clamp_(0, 1)
            self.change.zero_()

    def followed(self, logits: Tensor) -> dict[str, Tensor]:
        """Follow logits of real images where it adapts; return what is logged of itself."""
        if not self.adapts:
            return {}
        probability = self.probability.clone()
        return {"real_sign": self.follow(logits), "augmented": probability}

    @torch.no_grad()
    def follow(self, logits: Tensor) -> Tensor:
        """Take note of a rank's logits of real images; return r_t over all ranks, -1 to 1."""
        sign = mean_over_ranks(logits.detach().float().sign().mean())
        if self.target is not None:
            count = len(logits) * world_size()
            self.change.add_((sign - self.target).sign().to(self.change), alpha=count / self.images)
        return sign


def augment(
    images: Tensor, noise: Tensor, kinds: Sequence[str], probability: float | Tensor = 1.0
) -> Tensor:
    """Return images (B, 3, H, W) in [-1, 1], changed; those of one noise row in the same way.

    Args:
        images: their graph is kept.
        noise: (B, Z), each sample's own.
        kinds: of :data:`KINDS`; applied in the order that stands there.
        probability: that a change is applied to an image, each for itself; a tensor () waits for
            no device.
    """
    numbers = uniforms(noise, _EACH * len(KINDS)).unflatten(1, (len(KINDS), _EACH))
    for place, kind in enumerate(KINDS):
        if kind in kinds:
            applied, *how = numbers[:, place, :, None, None, None].unbind(1)
            changed = _CHANGES[kind](images, *how)
            images = torch.where(applied < probability, changed, images)
    return images


def uniforms(noise: Tensor, count: int) -> Tensor:
    """Return numbers (B, count) in [0, 1), float64, by a hash of each row of `noise` (B, Z).

    What the generator reads of the noise and these numbers are as good as independent: every bit
    of the first rows' numbers moves all of them.
    """
    bits = noise.detach().float().contiguous().view(torch.int32).to(torch.int64)
    lanes = torch.arange(1, count + 1, device=noise.device) * _STEP  # wraps around, as all below
    state = torch.zeros(len(noise), 1, dtype=torch.int64, device=noise.device)
    for column in bits[:, :8].unbind(1):  # 256 bits tell any two samples apart
        state = _mixed(state ^ column[:, None])
    hashed = _mixed(_mixed(state + lanes))
    return (hashed >> 11 & (1 << 53) - 1).double() / (1 << 53)


def _mixed(state: Tensor) -> Tensor:
    """Spread every bit over all others: xorshift and a multiplication, twice."""
    state = (state ^ (state >> 32 & 0xFFFFFFFF)) * _MIX
    return (state ^ (state >> 29 & (1 << 35) - 1)) * _MIX


def _color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    added, factor, spread = (
        value.to(images.dtype) for value in (brightness - 0.5, 2 * saturation, contrast + 0.5)
    )
    brighter = images + added
    gray = brighter.mean(1, keepdim=True)
    colored = gray + (brighter - gray) * factor
    mean = colored.mean((1, 2, 3), keepdim=True)
    return mean + (colored - mean) * spread


def _translation(images: Tensor, down: Tensor, right: Tensor, _: Tensor) -> Tensor:
    for dim, share in ((2, down), (3, right)):
        side = images.shape[dim]
        most = int(side * _SHIFT + 0.5)
        shift = (share * (2 * most + 1)).floor().long() - most
        shape = [1, 1, 1, 1]
        shape[dim] = side
        source = torch.arange(side, device=images.device).view(shape) - shift
        inside = (source >= 0) & (source < side)
        index = source.clamp(0, side - 1).expand(images.shape)
        images = images.gather(dim, index) * inside
    return images


def _cutout(images: Tensor, top: Tensor, left: Tensor, _: Tensor) -> Tensor:
    rows, columns = (
        _within(size, share, images.device)
        for size, share in zip(images.shape[2:], (top, left), strict=True)
    )
    hole = rows & columns.transpose(2, 3)
    return images * ~hole


def _within(side: int, share: Tensor, device: torch.device) -> Tensor:
    """Return which places (B, 1, side, 1) lie within the cut around a center anywhere."""
    size = int(side * _CUT + 0.5)
    first = (share * (side + 1 - size % 2)).floor() - size // 2
    places = torch.arange(side, device=device)[None, None, :, None]
    return (places >= first) & (places < first + size)


def _flip(images: Tensor, half: Tensor, *_: Tensor) -> Tensor:
    return torch.where(half < 0.5, images.flip(3), images)


_CHANGES = {"color": _color, "translation": _translation, "cutout": _cutout, "flip": _flip}
