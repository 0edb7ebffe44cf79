"""Attention of image positions over the words of a caption, as stages of a generator use it.

A word that is not there must get no attention. The released code of AttnGAN and DM-GAN tiles
the padding masks in the wrong order, so that most positions use another sample's mask; weights
trained with it expect it, so that order is offered too.

Building blocks of the generators that draw in stages: AttnGAN, DM-GAN and their hybrids.

Every convolution is followed by a batch norm and a gated linear unit (half of the channels times
the sigmoid of the other half). Shapes and order are those of AttnGAN's released code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.common.collectives import gather_rows, rank, sum_over_ranks, world_size
from t2i_hpc.models.batch_norm import GlobalBatchNorm2d


def hidden_words(padding_mask: Tensor, positions: int, reference: bool, training: bool) -> Tensor:
    """Return where words are hidden, from bool (B, T): (B, 1, T), or (B, positions, T) as released.

    The released code numbers the rows (sample b, position q) as b·positions + q, and gives row n
    the mask of sample n modulo the batch size. While training that is the global batch, so the
    result does not depend on the number of ranks.

    Args:
        padding_mask: True where a caption has no word.
        positions: places of the image that attend.
        reference: whether to do as the released code does.
        training: whether all ranks take part.
    """
    if not reference:
        return padding_mask[:, None]
    everyone = gather_rows(padding_mask.float()) > 0 if training else padding_mask
    batch = len(padding_mask)
    first = rank() * batch * positions if training else 0
    rows = torch.arange(first, first + batch * positions, device=padding_mask.device)
    return everyone[rows % len(everyone)].view(batch, positions, -1)


def read_words(
    features: Tensor, keys: Tensor, values: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Let every position of an image read from the words.

    Args:
        features: (B, C, h, w), what positions ask for.
        keys: (B, C, T), what words answer to.
        values: (B, V, T), what words say.
        hidden: bool (B, 1 or h·w, T), words that a position must not see.

    Returns:
        What was read (B, V, h, w), and the attention (B, T, h, w), which sums to 1 over words.
    """
    size = features.shape[2:]
    scores = features.flatten(2).transpose(1, 2) @ keys
    attention = scores.masked_fill(hidden, float("-inf")).softmax(2).transpose(1, 2)
    read = values @ attention.to(values.dtype)
    return read.unflatten(2, size), attention.unflatten(2, size)


class GlobalBatchNorm1d(GlobalBatchNorm2d):
    """Batch norm of (B, C) whose training statistics span all ranks."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalize by the global batch (training) or the running statistics (evaluation)."""
        return super().forward(features[:, :, None, None]).flatten(1)


class RaggedBatchNorm2d(GlobalBatchNorm2d):
    """Batch norm of (B, C, H, W) over all ranks, which may hold different numbers of rows, or none.

    The wrong pairs of a batch are one fewer than its images, so the last rank has one less.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalize by the rows of all ranks (training) or the running statistics."""
        if not self.training or world_size() == 1:
            return super().forward(features)
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        own = wide.new_tensor([features.numel() // features.shape[1]])
        # The number of rows travels with the sums; it stays on the device.
        sums = sum_over_ranks(torch.cat([wide.sum((0, 2, 3)), own]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centered = wide - mean[:, None, None]
        variance = sum_over_ranks(centered.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(features.dtype)

    def _follow(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Move the running statistics."""
        momentum = 0.1 if self.momentum is None else self.momentum
        moved = ((self.running_mean, mean), (self.running_var, unbiased_variance))
        for running, value in moved:
            if running is not None:
                running.lerp_(value, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class UpBlock(nn.Module):
    """Double the size of (B, C, H, W) by the nearest pixel; convolution to (B, C', 2H, 2W)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * out_channels, 3, padding=1, bias=False)
        self.norm = GlobalBatchNorm2d(2 * out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return the larger features."""
        large = F.interpolate(features, scale_factor=2, mode="nearest")
        return F.glu(self.norm(self.conv(large)), 1)


class ResidualBlock(nn.Module):
    """Two convolutions beside (B, C, H, W), with no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.norm1 = GlobalBatchNorm2d(2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = GlobalBatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features and what the convolutions add to them."""
        hidden = F.glu(self.norm1(self.conv1(features)), 1)
        added: Tensor = self.norm2(self.conv2(hidden))
        return features + added


class Condition(NamedTuple):
    """A condition (B, C) and the Gaussian it was drawn from: mean and log variance, both (B, C)."""

    value: Tensor
    mean: Tensor
    log_variance: Tensor


class ConditioningAugmentation(nn.Module):
    """Draw a condition from a Gaussian that the sentence decides (StackGAN §3.2).

    Args:
        sentence_width: length of the sentence vector.
        condition_width: length of the condition.
    """

    def __init__(self, sentence_width: int, condition_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sentence_width, 4 * condition_width)

    def forward(self, sentence: Tensor, noise: Tensor | None = None) -> Condition:
        """Return μ + σ·noise for sentences (B, S) and normal noise (B, C).

        Without noise: μ in evaluation mode, drawn by torch's generator in training.
        """
        mean, log_variance = F.glu(self.linear(sentence), 1).chunk(2, 1)
        if noise is None:
            noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return Condition(mean + (0.5 * log_variance).exp() * noise, mean, log_variance)


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Give a network AttnGAN's first weights, drawn from torch's generator.

    Convolutions and linear layers orthogonal, batch norms N(1, 0.02²) with zero biases, biases of
    linear layers zero; biases of convolutions stay as torch drew them.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(module.weight)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
