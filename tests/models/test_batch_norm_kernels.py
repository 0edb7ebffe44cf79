"""The CUDA kernels of batch norm over ranks, traced by fake tensors where there is no GPU.

Their arithmetic is tested by stand-ins over real ranks in tests/distributed, and on a GPU in
tests/gpu. A fake tensor that decided anything on the host would raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from t2i_hpc.models.batch_norm_kernels import NormalizeByKernels
from t2i_hpc.models.global_batch import GlobalBatchNorm1d, GlobalBatchNorm2d

SHAPE = (2, 16, 8, 8)


class Passes(TorchDispatchMode):
    """Counts map-sized tensors that operations read and write, collectives and copies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.passes, self.names = 0, list[str]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.append(str(function))
        if str(function).startswith(("aten.", "c10d.")):  # not what asks a tensor of its device
            leaves = [v for v in tree_leaves((args, kwargs, result)) if isinstance(v, Tensor)]
            self.passes += sum(v.shape == SHAPE for v in {id(v): v for v in leaves}.values())
        return result

    def count(self, name: str) -> int:
        return sum(name in each for each in self.names)


@pytest.fixture(autouse=True)
def four_ranks(of_no_group: None) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    yield
    dist.destroy_process_group()


def saving() -> SimpleNamespace:
    """Return what stands in for the context of a Function: no backward of fakes runs on CUDA."""
    context = SimpleNamespace(mark_non_differentiable=lambda *_: None)
    context.save_for_backward = lambda *saved: vars(context).update(saved_tensors=saved)
    return context


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
def test_passes_layout_and_precision(
    dtype: torch.dtype, layout: torch.memory_format, affine: bool
) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        norm = GlobalBatchNorm2d(SHAPE[1], affine=affine)
        features = torch.empty(SHAPE, dtype=dtype).to(memory_format=layout)
        gradient = torch.empty(SHAPE, dtype=dtype).to(memory_format=layout)
        context = saving()
        with Passes() as forward:
            given = (features, norm.weight, norm.bias, norm.eps)
            result, mean, variance, count = NormalizeByKernels.forward(context, *given)
        with Passes() as backward:
            found = NormalizeByKernels.backward(context, gradient)
    assert (forward.passes, backward.passes) == (3, 5)
    assert forward.count("allreduce") == backward.count("allreduce") == 1
    for value in (result, found[0]):
        assert value is not None
        assert (value.shape, value.dtype, value.device.type) == (SHAPE, dtype, "cuda")
        assert value.is_contiguous(memory_format=layout)
    assert mean.dtype == variance.dtype == count.dtype == torch.float32
    assert mean.shape == variance.shape == (SHAPE[1],)
    assert all((value is not None) == affine for value in found[1:3])


def test_layers_track_statistics_and_take_no_rows() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        for rows in (3, 0):
            with Passes() as forward:
                result = GlobalBatchNorm2d(16)(torch.empty(rows, 16, 8, 8).requires_grad_())
                flat = GlobalBatchNorm1d(16)(torch.empty(rows, 16))
            assert (result.shape, flat.shape) == ((rows, 16, 8, 8), (rows, 16))
            assert forward.count("lerp_") == 4
            assert forward.count("batch_norm_elemt") == 2 * bool(rows)


def test_one_rank_without_rows_differentiates_to_zeros() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        norm, context = GlobalBatchNorm2d(16), saving()
        none = torch.empty(0, 16, 8, 8)
        NormalizeByKernels.forward(context, none, norm.weight, norm.bias, norm.eps)
        found = NormalizeByKernels.backward(context, none)
    assert [value.shape for value in found if value is not None] == [(0, 16, 8, 8), (16,), (16,)]
