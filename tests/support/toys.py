"""A system of two small networks whose losses are means over samples: no batch statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.data.batches import Batch
from t2i_hpc.models import GeneratedImages
from t2i_hpc.systems.base import EMA, Losses, OptimizerSettings, Phase, Term

Spoil = Callable[[Tensor, Batch, str], Tensor]


def unspoilt(loss: Tensor, batch: Batch, phase: str) -> Tensor:
    """Leave a loss as it is."""
    return loss


class Toy:
    """Phase ``a`` updates one network, phase ``b`` the other.

    `spoil` makes another loss of a phase's loss, the batch and the phase's name.
    Each network has a parameter, ``rare``, that only samples at positions ≡ 0 (mod 4) reach.
    """

    noise_width, resolution = 3, 8
    emas: Sequence[EMA] = ()

    def __init__(self, spoil: Spoil = unspoilt) -> None:
        torch.manual_seed(0)
        networks = {name: Network() for name in ("a", "b")}
        self.spoil = spoil
        self.modules = nn.ModuleDict(networks)
        self.trainable: Mapping[str, nn.Module] = networks
        # An ε of the gradients' size: the scale of a loss is seen in the weights.
        settings = OptimizerSettings(1e-2, (0.5, 0.9), epsilon=0.1)
        self.optimizers: Mapping[str, OptimizerSettings] = dict.fromkeys(networks, settings)
        self.phases: Sequence[Phase] = [Phase(name, (name,), self._loss(name)) for name in networks]

    def begin(self, batch: Batch, noise: Tensor) -> tuple[Batch, Tensor]:
        return batch, noise

    def generate(self, tokens: Tensor, lengths: Tensor, noise: Tensor) -> GeneratedImages:
        return GeneratedImages([torch.zeros(len(tokens), 3, 8, 8)])

    def _loss(self, name: str) -> Callable[[Any], Losses]:
        def loss(context: tuple[Batch, Tensor]) -> Losses:
            batch, noise = context
            values = self.trainable[name](noise, batch.positions)
            return {"size": Term(self.spoil(values.mean(), batch, name))}

        return loss


class Network(nn.Module):
    """Sample by sample a number from noise (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.common = nn.Linear(3, 5)
        self.rare = nn.Parameter(torch.ones(5))

    def forward(self, noise: Tensor, positions: Tensor) -> Tensor:
        hidden = self.common(noise).tanh()
        chosen = positions % 4 == 0
        if bool(chosen.any()):  # else the parameter is not in the graph at all
            hidden = torch.where(chosen[:, None], hidden * self.rare, hidden)
        sums: Tensor = hidden.square().sum(1)
        return sums


def toy_batch(size: int, start: int = 0) -> tuple[Batch, Tensor]:
    """Samples by position, and their noise; the same whatever the size."""
    positions = torch.arange(start, start + size)
    rows = [torch.randn(3, generator=torch.Generator().manual_seed(int(p))) for p in positions]
    images = torch.zeros(size, 3, 8, 8, dtype=torch.uint8)
    tokens, lengths = torch.ones(size, 2, dtype=torch.int64), torch.full((size,), 2)
    return Batch(images, tokens, lengths, positions, positions), torch.stack(rows)
