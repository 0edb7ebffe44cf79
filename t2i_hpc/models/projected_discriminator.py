"""A discriminator on frozen features: Projected GANs (Sauer et al., NeurIPS 2021), with sentences.

Images pass through EfficientNet-Lite0, whose four maps are mixed by random convolutions that are
never trained: across channels by 1×1, across scales by 3×3 from the smallest map to the largest
(§3.1, Fig. 2), so that no head can rely on a few features alone. A small head for each map makes
many logits an image. The sentence enters as the class does there, by an inner product.

There is no gradient penalty, and so no second derivative. The paper's heads have batch norms; these
have spectral norms alone, so that any number of ranks trains the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.models.efficientnet import EfficientNetTaps
from t2i_hpc.models.staged_discriminator import SpectralConv2d

_SMALLEST_SIDE = 224  # the network's own: smaller images are enlarged to it, as in released code
_CONDITION_WIDTH = 64
_HEAD_SIDE, _LAST_KERNEL = 8, 4
# Root mean squares of the four maps on the demo's images, by which they are divided: a norm of
# each image's own would hide its contrast.
_SCALES = (8.0, 8.0, 7.0, 3.0)


class Projection(nn.Module):
    """Frozen, randomly mixed features of images at four scales.

    The random weights are drawn from torch's generator, and a checkpoint holds them.

    Args:
        width: channels of the largest map; the others have 2, 4 and 8 times as many (64 in the
            paper).
        side: that images are resized to.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.widths = [width << level for level in range(len(EfficientNetTaps.widths))]
        self.network = EfficientNetTaps()
        self.across_channels = nn.ModuleList(
            nn.Conv2d(given, wide, 1)
            for given, wide in zip(EfficientNetTaps.widths, self.widths, strict=True)
        )
        self.across_scales = nn.ModuleList(
            nn.Conv2d(below, above, 3, padding=1) for above, below in pairwise(self.widths)
        )
        for mixing in (*self.across_channels, *self.across_scales):
            assert isinstance(mixing, nn.Conv2d) and mixing.bias is not None
            nn.init.kaiming_normal_(mixing.weight, nonlinearity="linear")
            nn.init.zeros_(mixing.bias)
        self.requires_grad_(False)

    @property
    def sides(self) -> list[int]:
        """Sides of the maps, the largest first."""
        return [-(-self.side // (4 << level)) for level in range(len(self.widths))]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return four maps (B, width·2^l, s/2^(l+2), s/2^(l+2)) of images (B, 3, R, R)."""
        return self.mixed(self.network.of_images(images, self.side))

    def mixed(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the same of the network's maps."""
        parts = zip(self.across_channels, maps, _SCALES, strict=True)
        mixed = [mix(one / scale) for mix, one, scale in parts]
        for level in reversed(range(len(mixed) - 1)):
            # Mixed before it is enlarged: a quarter of the cost.
            below = self.across_scales[level](mixed[level + 1])
            size = mixed[level].shape[2:]
            enlarged = F.interpolate(below, size, mode="bilinear")
            mixed[level] = (mixed[level] + enlarged) / 2**0.5
        return mixed


class ProjectedDiscriminator(nn.Module):
    """Discriminator of (image, sentence) pairs on frozen features.

    Args:
        resolution: side of the images in pixels.
        width: channels of the largest map of features (64 in the paper).
        sentence_width: length of the sentence vector.
        side: that images are resized to for the frozen network; None: the resolution, 224 px at
            least.

    Attributes:
        frozen: the projection. It is not among the modules: a checkpoint keeps what is never
            trained once for a whole run.
    """

    differentiable_twice = False

    def __init__(
        self, resolution: int, width: int = 64, sentence_width: int = 256, side: int | None = None
    ) -> None:
        super().__init__()
        projection = Projection(width, side or max(_SMALLEST_SIDE, resolution))
        self.frozen: Mapping[str, nn.Module] = {"projection": projection}
        widths = projection.widths
        self.heads = nn.ModuleList(
            _head(widths[level:], side) for level, side in enumerate(projection.sides)
        )
        self.conditions = nn.ModuleList(
            nn.Linear(sentence_width, _CONDITION_WIDTH) for _ in self.heads
        )
        for condition in self.conditions:
            # At first it says what is real, of any sentence.
            assert isinstance(condition, nn.Linear)
            nn.init.normal_(condition.bias)

    def features(self, image: Tensor) -> list[Tensor]:
        """Return a map (B, 64, h, w) of each head for images (B, 3, R, R) in [-1, 1]."""
        return self._features(self._projection(image))

    def features_with_maps(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the same and the frozen network's own maps, from one forward."""
        maps = self._projection.network.of_images(image, self._projection.side)
        return self._features(self._projection.mixed(maps)), maps

    @property
    def _projection(self) -> Projection:
        projection = self.frozen["projection"]
        assert isinstance(projection, Projection)
        return projection

    def _features(self, maps: list[Tensor]) -> list[Tensor]:
        return [head(one) for head, one in zip(self.heads, maps, strict=True)]

    def logits(self, features: list[Tensor], sentence: Tensor) -> Tensor:
        """Return logits (B, L), all places of all heads, of features with sentences (B, S)."""
        found = []
        for condition, one in zip(self.conditions, features, strict=True):
            weights = condition(sentence)[:, :, None, None] / _CONDITION_WIDTH**0.5
            found.append((weights * one).sum(1).flatten(1))
        return torch.cat(found, dim=1)

    def forward(self, image: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B, L) of images with sentences."""
        return self.logits(self.features(image), sentence)


def _head(widths: list[int], side: int) -> nn.Sequential:
    """Return the layers from a map to 64 channels: halvings to 8 px, then one 4×4 convolution."""
    layers: list[nn.Module] = []
    channels = widths[0]
    for wider in [*widths[1:], widths[-1]]:
        if side <= _HEAD_SIDE:
            break
        layers += [SpectralConv2d(channels, wider, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        channels, side = wider, side // 2
    layers.append(SpectralConv2d(channels, _CONDITION_WIDTH, min(_LAST_KERNEL, side)))
    return nn.Sequential(*layers)
