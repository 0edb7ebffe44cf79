"""What a training step costs: its parameters and operations, counted on a small random batch.

Counting takes place outside of any training: torch's counter may decompose operators, and so
change the last bits of what they give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from t2i_hpc.data.batches import Batch
from t2i_hpc.systems.base import System, trainable
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World

_IMAGES = 4


@dataclass(frozen=True)
class Captions:
    """Random captions: their longest length in tokens, and how many tokens there are."""

    max_tokens: int
    vocabulary: int


def count_flops(step: Callable[[], object]) -> int:
    """Run a step and return its floating-point operations, a multiplication and an addition each.

    As torch counts: matrix products and convolutions, forward and backward.
    """
    # The attention that is fused for CPUs is one that the counter does not know.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def count_step(system: System, captions: Captions) -> float:
    """Return the floating-point operations per image of one step, all phases together.

    With phases that run every few steps it is the mean over their period. The system's weights are
    changed by the steps. It is on the CPU, in one process, and sees a batch of four images: terms
    that compare all images with all captions count for four.
    """
    strategy = DDPStrategy(system, World(0, 1, 0, 1, torch.device("cpu")))
    batch = random_batch(_IMAGES, system.resolution, captions)
    noise = torch.randn(_IMAGES, system.noise_width)
    period = max(phase.every for phase in system.phases)
    weights = [1 / period, 1 - 1 / period]  # of the first step, which runs all, and of the others
    flops = [
        count_flops(partial(train_step, strategy, batch, noise, step * _IMAGES)) * weight
        for step, weight in enumerate(weights)
        if weight > 0
    ]
    return sum(flops) / _IMAGES


def random_batch(images: int, resolution: int, captions: Captions) -> Batch:
    """Return random images of `resolution` px with random captions of several lengths."""
    # Captions of one length take a kernel for LSTMs that the counter does not know.
    lengths = (captions.max_tokens - torch.arange(images)).clamp(min=1)
    return Batch(
        torch.randint(0, 256, (images, 3, resolution, resolution), dtype=torch.uint8),
        torch.randint(1, captions.vocabulary, (images, captions.max_tokens)),
        lengths,
        torch.arange(images),
        torch.arange(images),
    )


def count_parameters(module: nn.Module) -> int:
    """Return how many numbers of a network are trained."""
    return sum(parameter.numel() for _, parameter in trainable(module))
