"""Collectives and batch norm over ranks give the single process's values and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from t2i_hpc.common.collectives import (
    gather_rows,
    mean_over_ranks,
    rank,
    sum_over_ranks,
    use_group,
    world_size,
)
from t2i_hpc.losses.adversarial import hinge_mismatch, mismatched
from t2i_hpc.models.global_batch import GlobalBatchNorm2d

WORLD = 3


def whole() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2 * WORLD, 4, 3, 3, dtype=torch.float64, generator=generator)


def normalize(features: Tensor) -> tuple[Tensor, GlobalBatchNorm2d]:
    norm = GlobalBatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
    weights = torch.linspace(-1, 1, features[0].numel(), dtype=torch.float64)
    return (norm(features).flatten(1) * weights).square().sum(), norm


def similarity(rows: Tensor) -> Tensor:
    everyone = gather_rows(rows)
    return (everyone @ everyone.t()).tanh().sum()


def one_rank(number: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=WORLD)
    mine = whole()[2 * number : 2 * number + 2].clone().requires_grad_()
    loss, norm = normalize(mine)
    loss.backward()
    rows = whole()[2 * number : 2 * number + 2].flatten(1).clone().requires_grad_()
    similarity(rows).backward()
    sentence = torch.arange(2.0)[:, None] + 2 * number
    torch.save(
        {
            "norm": mine.grad,
            "running": norm.state_dict(),
            "rows": rows.grad,
            "sum": sum_over_ranks(torch.tensor([float(number)])),
            "mean": mean_over_ranks(torch.tensor([float(number)])),
            "next": mismatched(sentence).flatten(),
            "shift": mean_over_ranks(hinge_mismatch(sentence.flatten(), "shift")[None]),
            "ahead": ahead_of_gradients(number),
        },
        f"{folder}/{number}.pt",
    )
    dist.destroy_process_group()


def ahead_of_gradients(number: int) -> Tensor:
    """Return a sum that all ranks end before some begin what rank 0 began earlier."""
    group = dist.new_group()
    assert isinstance(group, dist.ProcessGroup)
    use_group(group)
    bucket, begun = torch.ones(2), None
    if number == 0:
        begun = dist.all_reduce(bucket, async_op=True)
    total = sum_over_ranks(torch.tensor([float(number)]))
    begun = begun or dist.all_reduce(bucket, async_op=True)
    assert begun is not None
    begun.wait()
    use_group(None)
    return torch.cat([total, bucket])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(one_rank, (str(folder),), WORLD)
    return [torch.load(Path(folder) / f"{number}.pt") for number in range(WORLD)]


def test_batch_norm_has_the_global_batchs_gradients_and_statistics(
    results: list[dict[str, Tensor]],
) -> None:
    features = whole().requires_grad_()
    loss, norm = normalize(features)
    loss.backward()
    assert features.grad is not None
    assert torch.allclose(torch.cat([r["norm"] for r in results]), features.grad, rtol=1e-9)
    for result in results:
        for name, value in norm.state_dict().items():
            assert torch.allclose(result["running"][name], value, rtol=1e-12), name  # type: ignore[index]


def test_gathered_rows_give_world_times_the_gradient(results: list[dict[str, Tensor]]) -> None:
    rows = whole().flatten(1).requires_grad_()
    similarity(rows).backward()
    assert rows.grad is not None
    assert torch.allclose(torch.cat([r["rows"] for r in results]), WORLD * rows.grad, rtol=1e-9)


def test_sums_and_means(results: list[dict[str, Tensor]]) -> None:
    for result in results:
        assert result["sum"].tolist() == [3.0]
        assert result["mean"].tolist() == [1.0]


def test_exchanges_do_not_queue_behind_what_travels_on_the_default_group(
    results: list[dict[str, Tensor]],
) -> None:
    assert all(result["ahead"].tolist() == [3.0, 3.0, 3.0] for result in results)


def test_mismatched_pairs_cross_ranks(results: list[dict[str, Tensor]]) -> None:
    assert torch.cat([r["next"] for r in results]).tolist() == [1, 2, 3, 4, 5, 0]
    expected = (torch.arange(5.0) + 1).mean()
    for result in results:
        assert torch.allclose(result["shift"], expected)


def test_outside_a_group_all_is_the_identity() -> None:
    value = torch.randn(3)
    assert (world_size(), rank()) == (1, 0)
    assert sum_over_ranks(value) is value
    assert gather_rows(value) is value
    assert mean_over_ranks(value) is value
