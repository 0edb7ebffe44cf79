"""The one-way discriminators of DF-GAN and SSA-GAN: is this image real and does it match?

They have no batch statistics, so real and fake images may share one forward. The shortcut
convolutions between equal widths that published state dicts carry are never used there and do
not exist here: a dead parameter would break gradient averaging between ranks.

The matching-aware gradient penalty differentiates their gradient. torch's own leaky_relu and
avg_pool2d answer the second derivative with respect to the activation by a tensor of zeros,
which then travels backwards through every convolution for nothing: 10 % of an SSA-GAN
iteration. :func:`leaky_relu` and :func:`average_pool` depend on the incoming gradient alone, and
where none comes in none goes out (autograd would make it zeros), so the double backward touches
only the gradient's graph. Convolutions are those of :mod:`t2i_hpc.common.double_backward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.common.double_backward import conv2d
from t2i_hpc.common.opaque_functions import TwoWayFunction, opaque
from t2i_hpc.models.map_layout import as_kernels_like, small_as_weights
from t2i_hpc.models.resampling import halve, repeat

_LAST_SIDE = 4


class DownBlock(nn.Module):
    """Residual block that halves (B, C, H, W) to (B, C', H/2, W/2)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = Convolution(channels, out_channels, 4, stride=2, padding=1, bias=False)
        self.conv2 = Convolution(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            Convolution(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the halved features."""
        features = small_as_weights(features)
        residual = leaky_relu(self.conv2(leaky_relu(self.conv1(features))))
        # A 1×1 convolution commutes with the mean of 4 pixels: after it costs 4 times less.
        shortcut = self.shortcut(average_pool(features))
        return torch.addcmul(shortcut, self.scale, residual)


class MatchingDiscriminator(nn.Module):
    """Discriminator of (image, sentence) pairs.

    Args:
        resolution: side of the images in pixels, 4·2^n.
        width: channel unit (ndf); widths are 1, 2, 4, 8, 16, 16, … times it.
        sentence_width: length of the sentence vector.
    """

    frozen: Mapping[str, nn.Module] = MappingProxyType({})
    differentiable_twice = True

    def __init__(self, resolution: int = 256, width: int = 64, sentence_width: int = 256) -> None:
        super().__init__()
        self.from_rgb, self.blocks = _trunk(resolution, width, 16)
        channels = min(16, resolution // _LAST_SIDE) * width
        self.joint, self.logit = _head(channels + sentence_width, width)

    def features(self, image: Tensor) -> Tensor:
        """Return (B, 16·ndf, 4, 4) features of images (B, 3, R, R) in [-1, 1]."""
        result: Tensor = self.blocks(self.from_rgb(as_kernels_like(image)))
        return result

    def logits(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of image features with sentences (B, S); high = real and matching."""
        result: Tensor = self.logit(leaky_relu(self.joint(_joined(features, sentence))))
        return result.flatten()

    def forward(self, image: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of images with sentences."""
        return self.logits(self.features(image), sentence)


class DFDiscriminator(nn.Module):
    """DF-GAN's discriminator as of CVPR 2022 (NetD): features; :class:`DFHead` makes the logits.

    Args:
        resolution: side of the images in pixels, 4·2^n.
        width: channel unit (nf); widths are 1, 2, 4, 8, 8, … times it.
    """

    def __init__(self, resolution: int = 256, width: int = 32) -> None:
        super().__init__()
        self.from_rgb, self.blocks = _trunk(resolution, width, 8)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, 8·nf, 4, 4) features of images (B, 3, R, R) in [-1, 1]."""
        result: Tensor = self.blocks(self.from_rgb(as_kernels_like(image)))
        return result


class DFHead(nn.Module):
    """Logits of image features with sentences (NetC of the released code).

    Args:
        width: channel unit (nf) of the discriminator whose features it takes.
        sentence_width: length of the sentence vector.
    """

    def __init__(self, width: int = 32, sentence_width: int = 256) -> None:
        super().__init__()
        self.joint, self.logit = _head(8 * width + sentence_width, width)

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of (B, 8·nf, 4, 4) with sentences (B, S)."""
        result: Tensor = self.logit(leaky_relu(self.joint(_joined(features, sentence))))
        return result.flatten()


class PairedDiscriminator(nn.Module):
    """DF-GAN's discriminator and head, two published state dicts, as one matching discriminator."""

    frozen: Mapping[str, nn.Module] = MappingProxyType({})
    differentiable_twice = True

    def __init__(self, discriminator: DFDiscriminator, head: DFHead) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.head = head

    def features(self, image: Tensor) -> Tensor:
        """Return (B, 8·nf, 4, 4) features of images (B, 3, R, R) in [-1, 1]."""
        result: Tensor = self.discriminator(image)
        return result

    def logits(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of image features with sentences (B, S); high = real and matching."""
        result: Tensor = self.head(features, sentence)
        return result

    def forward(self, image: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of images with sentences."""
        return self.logits(self.features(image), sentence)


def _trunk(resolution: int, width: int, widest: int) -> tuple[nn.Module, nn.Sequential]:
    """Return the layers from colors to 4 px; channels double with each halving up to `widest`."""
    halvings = (resolution // _LAST_SIDE).bit_length() - 1
    widths = [min(widest, 1 << level) * width for level in range(halvings + 1)]
    from_rgb = Convolution(3, widths[0], 3, padding=1)
    return from_rgb, nn.Sequential(*(DownBlock(a, b) for a, b in pairwise(widths)))


def _head(channels: int, width: int) -> tuple[nn.Module, nn.Module]:
    """Return the two convolutions from joined features and sentence to a logit."""
    joint = Convolution(channels, 2 * width, 3, padding=1, bias=False)
    return joint, Convolution(2 * width, 1, _LAST_SIDE, bias=False)


def _joined(features: Tensor, sentence: Tensor) -> Tensor:
    """Return features (B, C, 4, 4) and sentences (B, S) as (B, C + S, 4, 4)."""
    spread = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
    return torch.cat([features, spread], dim=1)


class Convolution(nn.Conv2d):
    """``nn.Conv2d`` whose second derivative needs no kernel as large as the image."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert isinstance(self.padding, tuple)  # numbers, not "same"
        (down, across), (above, beside) = self.stride, self.padding
        return conv2d(input, weight, bias, (down, across), (above, beside))


class _LeakyReLU(TwoWayFunction):
    @staticmethod
    def forward(value: Tensor, slope: float) -> Tensor:
        return F.leaky_relu(value, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        # The result has the signs of the value, and the next layer keeps it anyway.
        ctx.save_for_backward(output)
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is None:
            return None, None
        (result,) = ctx.saved_tensors
        backward = torch.ops.aten.leaky_relu_backward
        return backward(gradient, result.detach(), ctx.slope, False), None


class _AveragePool2(TwoWayFunction):
    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return halve(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:
            return None
        return repeat(gradient * 0.25, 2)


_leaky_relu = opaque("leaky_relu(Tensor value, float slope) -> Tensor", _LeakyReLU.call)
_average_pool = opaque("average_pool(Tensor value) -> Tensor", _AveragePool2.call)


def leaky_relu(value: Tensor, slope: float = 0.2) -> Tensor:
    """Return max(x, slope·x); any shape."""
    return _leaky_relu(value, slope)


def average_pool(value: Tensor) -> Tensor:
    """Halve (B, C, H, W) by 2×2 means; H and W even."""
    return _average_pool(value)
