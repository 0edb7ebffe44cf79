"""The semantic-spatial aware convolution block of SSA-GAN (paper §3.2, Fig. 3).

A mask says where the text may change the features; the sentence says how. The default is the
behaviour of the released code (which made the published numbers): the modulation is
x̂·(1 + m·γ(e)) + m·β(e), and features are enlarged by the nearest pixel. The paper says
m·(γ(e)·x̂ + β(e)) and bilinear enlargement; both are options.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.models.batch_norm import GlobalBatchNorm2d


class SentenceAffine(nn.Module):
    """Two-layer perceptron from the sentence (B, S) to one number a channel (B, C).

    The last layer's weight starts at zero and its bias at `start`, so that training starts with
    the same number for every sentence.
    """

    def __init__(self, sentence_width: int, channels: int, start: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(sentence_width, sentence_width)
        self.output = nn.Linear(sentence_width, channels)
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.output.bias, start)

    def forward(self, sentence: Tensor) -> Tensor:
        """Return (B, C, 1, 1)."""
        result: Tensor = self.output(F.relu(self.hidden(sentence)))
        return result[:, :, None, None]


class SemanticSpatialBatchNorm(nn.Module):
    """Conditional batch norm in the places a mask allows.

    Args:
        channels: of the features.
        sentence_width: length of the sentence vector.
        modulation: ``code`` is x̂·(1 + m·γ(e)) + m·β(e) (released code); ``paper`` is
            m·(γ(e)·x̂ + β(e)) (SSA-GAN Eq. 5), with γ starting at 1: starting at 0 the features
            would vanish, and with them every gradient.
    """

    def __init__(self, channels: int, sentence_width: int, modulation: str = "code") -> None:
        super().__init__()
        self.keeps_features = modulation == "code"
        self.norm = GlobalBatchNorm2d(channels, affine=False)
        self.gamma = SentenceAffine(
            sentence_width, channels, start=0.0 if self.keeps_features else 1.0
        )
        self.beta = SentenceAffine(sentence_width, channels)

    def forward(self, features: Tensor, sentence: Tensor, mask: Tensor | None) -> Tensor:
        """Modulate (B, C, H, W) by the sentence (B, S) where mask (B, 1, H, W) in [0, 1] is high.

        Without a mask the whole map is modulated.
        """
        normalised: Tensor = self.norm(features)
        change: Tensor = torch.addcmul(self.beta(sentence), self.gamma(sentence), normalised)
        masked = change if mask is None else mask * change
        return normalised + masked if self.keeps_features else masked


class MaskPredictor(nn.Module):
    """Semantic mask logits (B, 1, H, W) of features (B, C, H, W); sigmoid gives the mask."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = GlobalBatchNorm2d(width)
        self.logits = nn.Conv2d(width, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Predict the logits."""
        result: Tensor = self.logits(F.relu(self.norm(self.features(features))))
        return result


def enlarge(features: Tensor, factor: int, mode: str) -> Tensor:
    """Enlarge (B, C, H, W) `factor` times: ``nearest``, or ``bilinear`` with aligned corners."""
    if factor == 1:
        return features
    aligned = True if mode == "bilinear" else None
    return F.interpolate(features, scale_factor=factor, mode=mode, align_corners=aligned)


class SSABlock(nn.Module):
    """Residual block: SSCBN, ReLU, conv, twice, beside a shortcut.

    Args:
        channels: channels of the incoming features.
        out_channels: channels of the result.
        sentence_width: length of the sentence vector.
        upsampling: factor of enlargement before the block, 1 for none.
        enlargement: ``nearest`` (released code) or ``bilinear`` (paper).
        modulation: of :class:`SemanticSpatialBatchNorm`.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        sentence_width: int,
        upsampling: int,
        *,
        enlargement: str = "nearest",
        modulation: str = "code",
    ) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.enlargement = enlargement
        self.norm1 = SemanticSpatialBatchNorm(channels, sentence_width, modulation)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = SemanticSpatialBatchNorm(out_channels, sentence_width, modulation)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, sentence: Tensor, mask: Tensor | None) -> Tensor:
        """Map (B, C, H, W) to (B, C', u·H, u·W); `mask` has the size of the result."""
        # A 1×1 convolution commutes with enlargement, whose weights sum to 1: before it costs
        # u² less.
        shortcut = self.enlarge(self.shortcut(features))
        hidden = self.enlarge(features)
        hidden = self.conv1(F.relu(self.norm1(hidden, sentence, mask)))
        hidden = self.conv2(F.relu(self.norm2(hidden, sentence, mask)))
        return torch.addcmul(shortcut, self.scale, hidden)

    def enlarge(self, features: Tensor) -> Tensor:
        """Enlarge features as before the block's first layer."""
        return enlarge(features, self.upsampling, self.enlargement)
