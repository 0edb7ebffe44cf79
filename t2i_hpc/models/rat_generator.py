"""RAT-GAN's generator: a recurrent network gives each affine layer its condition.

Recurrent affine transformation (Ye, Liu, Tan, 2022, arXiv:2204.10482): DF-GAN's first version, but
for what steers it. There the sentence itself enters each affine layer; here an LSTM cell reads the
sentence again before each of them, and its hidden state enters, so that layers know of those before
them. Noise gives the cell its first state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from t2i_hpc.models.df_generator import DFBlock, StemmedGenerator
from t2i_hpc.models.ssa_generator import plan_blocks

_AFFINES = 4  # of a block


class AffineRecurrence(nn.Module):
    """An LSTM cell that reads a sentence again and again; as wide as the sentence.

    Args:
        noise_width, sentence_width: lengths of the two input vectors.
    """

    def __init__(self, noise_width: int, sentence_width: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.empty(sentence_width, 4 * sentence_width))
        self.hidden = nn.Parameter(torch.empty(sentence_width, 4 * sentence_width))
        self.bias = nn.Parameter(torch.empty(4 * sentence_width))
        bound = 1 / math.sqrt(sentence_width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self.start_hidden = nn.Linear(noise_width, sentence_width)
        self.start_cell = nn.Linear(noise_width, sentence_width)

    def forward(self, noise: Tensor, sentence: Tensor, steps: int) -> Tensor:
        """Return the hidden states (steps, B, S) of noise (B, Z) and sentences (B, S)."""
        # Without autocast: the cell's state would be rounded once in each of up to 28 steps.
        with torch.autocast(noise.device.type, enabled=False):
            kind = self.bias.dtype
            noise, sentence = noise.to(kind), sentence.to(kind)
            hidden, cell = self.start_hidden(noise), self.start_cell(noise)
            given = torch.addmm(self.bias, sentence, self.input)  # the same in each step
            states = []
            for _ in range(steps):
                gates = torch.addmm(given, hidden, self.hidden).chunk(4, dim=1)
                enter, keep, leave = (torch.sigmoid(gates[place]) for place in (0, 1, 3))
                cell = keep * cell + enter * torch.tanh(gates[2])
                hidden = leave * torch.tanh(cell)
                states.append(hidden)
            return torch.stack(states)


class RATBlock(DFBlock):
    """DF-GAN's block, each of whose four affine layers has a condition of its own."""

    def forward(self, features: Tensor, conditions: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', u·H, u·W) by conditions (4, B, S)."""
        assert self.scale is not None
        shortcut, hidden = self.enlarge(self.shortcut(features)), self.enlarge(features)
        hidden = self.conv1(self.fusion1(hidden, *conditions[:2]))
        hidden = self.conv2(self.fusion2(hidden, *conditions[2:]))
        return torch.addcmul(shortcut, self.scale, hidden)


class RATGenerator(StemmedGenerator):
    """Generator of RAT-GAN.

    Args:
        resolution: side of the image in pixels, 4·2^n.
        width: channel unit (nf).
        noise_width, sentence_width: lengths of the two input vectors.
    """

    def __init__(
        self,
        resolution: int = 256,
        *,
        width: int = 64,
        noise_width: int = 100,
        sentence_width: int = 256,
    ) -> None:
        plan = plan_blocks(resolution, None)
        widths = [width * unit for unit in (plan.widths[0], *plan.widths)]
        super().__init__(noise_width, widths[0], widths[-1])
        self.recurrence = AffineRecurrence(noise_width, sentence_width)
        self.blocks = nn.ModuleList(
            RATBlock(a, b, sentence_width, enlarged, hidden_width=sentence_width, scaled=True)
            for (a, b), enlarged in zip(pairwise(widths), plan.upsamplings, strict=True)
        )

    def conditions(self, noise: Tensor, sentence: Tensor) -> Sequence[Tensor]:
        """Return four states of the recurrence (4, B, S) for each block."""
        states: Tensor = self.recurrence(noise, sentence, _AFFINES * len(self.blocks))
        return torch.split(states, _AFFINES)
