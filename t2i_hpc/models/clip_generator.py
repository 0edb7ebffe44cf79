"""GALIP's generator: through a frozen CLIP (Tao et al., CVPR 2023, arXiv:2301.12959).

Noise becomes a map of as many places as CLIP has patches; residual blocks without enlargement shape
it by the condition, CLIP's transformer adds what it knows of images ("bridge"), DF-GAN's blocks
enlarge it. Nothing is normalized over the batch, so any number of ranks makes the same images.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.models import GeneratedImages
from t2i_hpc.models.clip_transformer import CLIPVision
from t2i_hpc.models.df_generator import DFBlock, FusionLayer
from t2i_hpc.models.map_layout import as_kernels_like
from t2i_hpc.models.ssa_generator import plan_blocks

BRIDGE_BLOCKS = 4
_FIRST_SIDE = 8  # of the map behind the first block that enlarges
_TRUST = 0.1  # of CLIP's part in the bridge


class BridgeBlock(nn.Module):
    """Residual block of the bridge: conv, fusion, twice, through half as many channels."""

    recomputable = True

    def __init__(self, channels: int, condition_width: int) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.conv1 = nn.Conv2d(channels, half, 3, padding=1)
        self.fusion1 = FusionLayer(half, condition_width, half)
        self.conv2 = nn.Conv2d(half, channels, 3, padding=1)
        self.fusion2 = FusionLayer(channels, condition_width, channels)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map (B, C, g, g) to (B, C, g, g) by conditions (B, S)."""
        hidden = self.fusion1(self.conv1(features), condition)
        result: Tensor = features + self.fusion2(self.conv2(hidden), condition)
        return result


class SizedBlock(DFBlock):
    """DF-GAN's block that enlarges to a side instead of by a factor, from 7 px to 8, to 224."""

    def __init__(self, channels: int, out_channels: int, condition_width: int, side: int) -> None:
        super().__init__(channels, out_channels, condition_width, 1)
        self.side = side

    def enlarge(self, features: Tensor) -> Tensor:
        """Enlarge (B, C, H, W) to the block's side by the nearest pixel."""
        return F.interpolate(features, size=(self.side, self.side))


class CLIPGenerator(nn.Module):
    """Generator of GALIP.

    Args:
        resolution: side of the image in pixels.
        width: channel unit (nf).
        noise_width, sentence_width: lengths of the two input vectors.
        vision_width: features of a CLIP's patch.
        grid: its patches along a side.
        prompts: blocks of CLIP, from the second on, that get a token of the condition.
        bridge_width: channels before CLIP.
    """

    def __init__(
        self,
        resolution: int = 224,
        *,
        width: int = 64,
        noise_width: int = 100,
        sentence_width: int = 512,
        vision_width: int = 768,
        grid: int = 7,
        prompts: int = 8,
        bridge_width: int = 64,
    ) -> None:
        super().__init__()
        condition = noise_width + sentence_width
        sides = sides_to(resolution)
        widths = [width * unit for unit in plan_blocks(4 << len(sides), None).widths]
        self.first = (bridge_width, grid, grid)
        self.stem = nn.Linear(noise_width, bridge_width * grid**2)
        self.bridge = nn.ModuleList(
            BridgeBlock(bridge_width, condition) for _ in range(BRIDGE_BLOCKS)
        )
        self.to_vision = nn.Conv2d(bridge_width, vision_width, 5, padding=2)
        self.from_vision = nn.Conv2d(vision_width, widths[0], 5, padding=2)
        self.prompt = nn.Linear(condition, vision_width * prompts)
        self.blocks = nn.ModuleList(
            SizedBlock(a, b, condition, side)
            for (a, b), side in zip(pairwise(widths), sides, strict=True)
        )
        self.to_rgb = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, noise: Tensor, sentence: Tensor, vision: CLIPVision) -> GeneratedImages:
        """Generate (B, 3, R, R) from noise (B, Z) and sentences (B, S); no masks.

        Colors are around [-1, 1] and not cut off: CLIP sees them as they are, people cut.
        """
        condition = torch.cat([noise, sentence], dim=1)
        features = as_kernels_like(self.bridged(noise, condition, vision), self.to_rgb)
        for block in self.blocks:
            features = block(features, condition)
        return GeneratedImages(images=[self.to_rgb(F.leaky_relu(features, 0.2))])

    def bridged(self, noise: Tensor, condition: Tensor, vision: CLIPVision) -> Tensor:
        """Return the map (B, 8·width, g, g) that the blocks enlarge."""
        features = self.stem(noise).view(-1, *self.first)
        for block in self.bridge:
            features = block(features, condition)
        before: Tensor = self.to_vision(features)
        prompts = self.prompt(condition).view(noise.shape[0], -1, vision.width)
        after = vision.transform(before, prompts)
        result: Tensor = self.from_vision(before + _TRUST * after)
        return result


def sides_to(resolution: int) -> list[int]:
    """Return the sides behind each block that enlarges: 8, 16, … and the resolution."""
    sides = [_FIRST_SIDE]
    while sides[-1] < resolution:
        sides.append(min(2 * sides[-1], resolution))
    return sides
