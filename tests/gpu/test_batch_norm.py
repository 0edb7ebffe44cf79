"""Batch norm over ranks by its CUDA kernels, against torch's on the whole batch in float64.

The ranks of one process take turns: what one of them sums is what all gave the turn before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.models import batch_norm_kernels
from t2i_hpc.models.batch_norm_kernels import NormalizeByKernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CHANNELS, EPSILON = 24, 1e-5
ROWS = {"equal": (4, 4), "fewer": (4, 3), "none last": (7, 0), "none first": (0, 5, 3)}
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}
Found = tuple[Tensor, ...]


@dataclass
class Turns:
    """Sums over ranks that run one after the other: those of the turn before."""

    ranks: int
    rank: int = 0
    given: dict[int, list[Tensor]] = field(default_factory=dict)
    before: dict[int, list[Tensor]] = field(default_factory=dict)
    calls: int = 0

    def all_reduce(self, value: Tensor) -> None:
        self.given.setdefault(self.calls, []).append(value.clone())
        known = (
            torch.stack(self.before[self.calls]).sum(0) if self.before else torch.ones_like(value)
        )
        value.copy_(known)
        self.calls += 1

    def run(self, work: Callable[[int], Found]) -> list[Found]:
        """Return each rank's result, after as many turns as there are sums that need others."""
        for _ in range(3):
            self.before, self.given, results = self.given, {}, []
            for rank in range(self.ranks):
                self.rank, self.calls = rank, 0
                results.append(work(rank))
        return results


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_ranks_are_one_batch(
    dtype: torch.dtype,
    layout: torch.memory_format,
    rows: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    turns = Turns(len(rows))
    monkeypatch.setattr(batch_norm_kernels, "all_reduce", turns.all_reduce)
    monkeypatch.setattr(batch_norm_kernels, "world_size", lambda: turns.ranks)
    monkeypatch.setattr(batch_norm_kernels, "rank", lambda: turns.rank)
    torch.manual_seed(0)
    shape = (sum(rows), CHANNELS, 9, 9)
    features, gradient = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    features = features * 3 + 5
    # Weights are float32 where maps are half.
    precise = torch.promote_types(dtype, torch.float32)
    weight, bias = torch.randn(2, CHANNELS, device=device, dtype=precise)

    def work(rank: int) -> Found:
        mine = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
        leaves = [features[mine].to(memory_format=layout), weight.clone(), bias.clone()]
        for leaf in leaves:
            leaf.requires_grad_()
        result, mean, variance, count = NormalizeByKernels.apply(*leaves, EPSILON)
        result.backward(gradient[mine].to(memory_format=layout))
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=layout)
        return result.detach(), *(leaf.grad for leaf in leaves), mean, variance, count

    found = turns.run(work)
    leaves = [value.double().requires_grad_() for value in (features, weight, bias)]
    whole, scale, shift = leaves
    result = F.batch_norm(whole, None, None, scale, shift, True, 0.0, EPSILON)
    result.backward(gradient.double())

    def close(ours: Tensor, theirs: Tensor | None) -> None:
        assert theirs is not None
        error = (ours.double() - theirs).abs().max() / theirs.abs().max()
        assert float(error) <= TOLERANCES[dtype]

    close(torch.cat([each[0] for each in found]), result.detach())
    close(torch.cat([each[1] for each in found]), leaves[0].grad)
    for place in (1, 2):
        close(torch.stack([each[place + 1] for each in found]).sum(0), leaves[place].grad)
    for each in found:
        close(each[4], leaves[0].detach().mean((0, 2, 3)))
        close(each[5], leaves[0].detach().var((0, 2, 3), correction=0))
        assert int(each[6]) == sum(rows) * 81


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm_kernels, "all_reduce", lambda value: None)
    features = torch.randn(4, CHANNELS, 9, 9, device="cuda", requires_grad=True)
    weight, bias = torch.ones(2, CHANNELS, device="cuda").unbind()
    torch.cuda.set_sync_debug_mode("error")
    try:
        NormalizeByKernels.apply(features, weight, bias, EPSILON)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
