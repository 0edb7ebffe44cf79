"""Batch norm over ranks: rows that differ, half precision, memory traffic, compiled."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from t2i_hpc.models import global_batch
from t2i_hpc.models.batch_norm_kernels import NormalizeByKernels
from t2i_hpc.models.global_batch import GlobalBatchNorm2d
from tests.support import batch_norm_kernels

WORLD = 2
CHANNELS = 4
ROWS = {"equal": (3, 3), "fewer": (3, 2), "none": (4, 0), "none first": (0, 4)}
KINDS = ("any device", "CUDA's kernels")
_VIEWS = ("view", "detach", "expand", "slice", "select", "alias", "empty", "as_strided", "split")


class Traffic(TorchDispatchMode):
    """Adds up the bytes of map-sized tensors that operations read and write."""

    def __init__(self, elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements, self.bytes = elements, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not any(name in str(function) for name in _VIEWS):
            leaves = [v for v in tree_leaves((args, kwargs, result)) if isinstance(v, Tensor)]
            maps = {id(v): v for v in leaves if v.numel() >= self.elements}
            self.bytes += sum(v.numel() * v.element_size() for v in maps.values())
        return result


def given(name: str) -> tuple[Tensor, Tensor]:
    """Return features and the gradient of the result, all ranks' rows."""
    random = torch.Generator().manual_seed(0)
    shape = (sum(ROWS[name]), CHANNELS, 5, 5)
    features = torch.randn(shape, generator=random, dtype=torch.float64) * 3 + 5
    return features, torch.randn(shape, generator=random, dtype=torch.float64)


def made(dtype: torch.dtype = torch.float64) -> GlobalBatchNorm2d:
    norm = GlobalBatchNorm2d(CHANNELS).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    return norm


def one_rank(number: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=WORLD)
    found: dict[str, Any] = {}
    plain = vars(global_batch)["_NormalizeGlobally"]
    stand_ins = batch_norm_kernels.install()
    for kind in KINDS:
        if kind == KINDS[1]:
            vars(global_batch)["_NormalizeGlobally"] = NormalizeByKernels
        found |= {f"{name} {kind}": differentiated(name, number) for name in ROWS}
        found[f"bfloat16 {kind}"] = half(number)
    vars(global_batch)["_NormalizeGlobally"] = plain
    stand_ins._destroy()
    found["traffic"] = traffic()
    found["compiled"] = compiled(number)
    found["twice"] = twice()
    torch.save(found, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def differentiated(name: str, number: int) -> tuple[Any, ...]:
    """Return this rank's result, gradients and state."""
    rows = ROWS[name]
    mine = slice(sum(rows[:number]), sum(rows[: number + 1]))
    features, gradient = (value[mine].clone() for value in given(name))
    norm, features = made(), features.requires_grad_()
    result = norm(features)
    result.backward(gradient)
    state = {key: value.clone() for key, value in norm.state_dict().items()}
    assert norm.weight.grad is not None
    return result.detach(), features.grad, norm.weight.grad, norm.bias.grad, state


def half(number: int) -> tuple[Tensor, Tensor]:
    mine = slice(3 * number, 3 * number + 3)
    features, gradient = (value[mine].to(torch.bfloat16) for value in given("equal"))
    features = features.requires_grad_()
    result = made(torch.float32)(features)
    result.backward(gradient)
    assert features.grad is not None
    return result.detach(), features.grad


def traffic() -> tuple[float, float]:
    features, norm = torch.randn(2, CHANNELS, 8, 8).requires_grad_(), made(torch.float32)
    with Traffic(features.numel()) as forward:
        result = norm(features)
    gradient = torch.randn_like(result)
    with Traffic(features.numel()) as backward:
        result.backward(gradient)
    return forward.bytes / features.numel(), backward.bytes / features.numel()


def compiled(number: int) -> tuple[Tensor, Tensor]:
    mine = slice(3 * number, 3 * number + 3)
    features, gradient = (value[mine].clone() for value in given("equal"))
    norm, features = made(), features.requires_grad_()
    norm.compile(backend="aot_eager", fullgraph=True)
    result = norm(features)
    result.backward(gradient)
    assert features.grad is not None
    return result.detach(), features.grad


def twice() -> str:
    features = torch.randn(2, CHANNELS, 5, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(
        made(torch.float32)(features).square().sum(), features, create_graph=True
    )
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("norms")
    spawn(one_rank, (str(folder),), WORLD)
    return [torch.load(Path(folder) / f"{number}.pt") for number in range(WORLD)]


def expected(name: str) -> tuple[Tensor, Tensor, torch.nn.BatchNorm2d]:
    features, gradient = given(name)
    norm = torch.nn.BatchNorm2d(CHANNELS).double()
    norm.load_state_dict(made().state_dict())
    features.requires_grad_()
    result = norm(features)
    result.backward(gradient)
    assert features.grad is not None
    return result.detach(), features.grad, norm


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROWS)
def test_ranks_with_any_numbers_of_rows_are_one_batch(
    ranks: list[dict[str, Any]], name: str, kind: str
) -> None:
    result, by_features, norm = expected(name)
    close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)
    name = f"{name} {kind}"
    close(torch.cat([r[name][0] for r in ranks]), result)
    close(torch.cat([r[name][1] for r in ranks]), by_features)
    close(sum(r[name][2] for r in ranks), norm.weight.grad)
    close(sum(r[name][3] for r in ranks), norm.bias.grad)
    for rank in ranks:
        for key, value in norm.state_dict().items():
            close(rank[name][4][key], value)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_kept_and_its_statistics_are_not_rounded(
    ranks: list[dict[str, Any]], kind: str
) -> None:
    features, gradient = (value.to(torch.bfloat16) for value in given("equal"))
    wide = features.float().requires_grad_()
    norm = made(torch.float32)
    result = F.batch_norm(wide, None, None, norm.weight, norm.bias, True)
    result.backward(gradient.float())
    assert wide.grad is not None
    for place, exact in enumerate((result.detach(), wide.grad)):
        found = torch.cat([r[f"bfloat16 {kind}"][place] for r in ranks])
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)


def test_it_moves_at_most_60_bytes_an_element(ranks: list[dict[str, Any]]) -> None:
    forward, backward = ranks[0]["traffic"]
    assert forward <= 12
    assert backward <= 24  # in differentiable operations: 48 and 108


def test_it_compiles_whole(ranks: list[dict[str, Any]]) -> None:
    result, by_features, _ = expected("equal")
    torch.testing.assert_close(torch.cat([r["compiled"][0] for r in ranks]), result)
    torch.testing.assert_close(torch.cat([r["compiled"][1] for r in ranks]), by_features)


def test_a_second_derivative_is_an_error_and_not_a_wrong_number(
    ranks: list[dict[str, Any]],
) -> None:
    assert all("once_differentiable" in rank["twice"] for rank in ranks)
