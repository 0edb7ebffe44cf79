"""GALIP's discriminator: of CLIP's features and a sentence (Tao et al., CVPR 2023).

It reads maps of frozen CLIP's blocks, so its gradient penalty is one at features: the second
derivative goes through a few small maps, never through pixels. There are no batch statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from t2i_hpc.models.discriminator import Convolution, leaky_relu
from t2i_hpc.models.map_layout import as_kernels_like

_LAST_KERNEL = 4


class FeatureBlock(nn.Module):
    """Residual block at one size, which may add the map of CLIP's next level.

    Args:
        channels, out_channels: before and after.
        adds: whether a next level is added, by a learned factor that is 0 at first.
    """

    def __init__(self, channels: int, out_channels: int, adds: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))
        self.level_scale = nn.Parameter(torch.zeros(1)) if adds else None
        self.conv1 = Convolution(channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = Convolution(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            Convolution(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )

    def forward(self, features: Tensor, level: Tensor | None = None) -> Tensor:
        """Map (B, C, g, g) to (B, C', g, g)."""
        residual = leaky_relu(self.conv2(leaky_relu(self.conv1(features))))
        result = torch.addcmul(self.shortcut(features), self.scale, residual)
        if level is None or self.level_scale is None:
            return result
        return torch.addcmul(result, self.level_scale, level)


class CLIPTrunk(nn.Module):
    """From CLIP's levels to features (NetD of the released code).

    Args:
        vision_width: features of a CLIP's patch.
        levels: maps of CLIP that are read, at least two.
        width: channel unit; 8 of it come out.
    """

    def __init__(self, vision_width: int = 768, levels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            FeatureBlock(vision_width, vision_width, adds=True) for _ in range(levels - 1)
        )
        self.last = FeatureBlock(vision_width, 8 * width, adds=False)

    def forward(self, levels: Tensor) -> Tensor:
        """Return (B, 8·width, g, g) of levels (B, L, W, g, g)."""
        first, *others = (as_kernels_like(level) for level in levels.unbind(1))
        features = first
        for block, level in zip(self.blocks, others, strict=True):
            features = block(features, level)
        result: Tensor = self.last(features)
        return result


class CLIPHead(nn.Module):
    """Logits of features with sentences (NetC of the released code).

    Args:
        width: channel unit of the trunk.
        sentence_width: length of the sentence vector.
        grid: side of the features.
    """

    def __init__(self, width: int = 64, sentence_width: int = 512, grid: int = 7) -> None:
        super().__init__()
        last = min(_LAST_KERNEL, grid)
        joined = 8 * width + sentence_width
        self.joint = Convolution(joined, 2 * width, grid - last + 1, bias=False)
        self.logit = Convolution(2 * width, 1, last, bias=False)

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of features (B, 8·width, g, g) with sentences (B, S)."""
        spread = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
        joint = leaky_relu(self.joint(torch.cat([features, spread], dim=1)))
        result: Tensor = self.logit(joint)
        return result.flatten()


class CLIPDiscriminator(nn.Module):
    """Both as one discriminator of (levels, sentence) pairs."""

    def __init__(self, trunk: CLIPTrunk, head: CLIPHead) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def features(self, levels: Tensor) -> Tensor:
        """Return (B, 8·width, g, g) of levels (B, L, W, g, g)."""
        result: Tensor = self.trunk(levels)
        return result

    def logits(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of features with sentences (B, S); high = real and matching."""
        result: Tensor = self.head(features, sentence)
        return result

    def forward(self, levels: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of levels with sentences."""
        return self.logits(self.features(levels), sentence)
