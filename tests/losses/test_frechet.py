"""The Fréchet distance as a loss: its value, its gradient, and what it does to a generator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2i_hpc.losses.frechet import RIDGE, FrechetMoments, roots_by_products, transport_map

WIDTHS = (2, 4)
WIDTH = sum(WIDTHS)


def normal(count: int, seed: int) -> Tensor:
    """Return features (N, 6) that are correlated, of a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    values = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    return values @ mixing + seed


def made(real: Tensor, half_life: float = 8.0) -> FrechetMoments:
    moments = FrechetMoments(WIDTHS, half_life)
    moments.set_real(len(real), real.sum(0), real.T @ real)
    return moments


def distance(moments: FrechetMoments, mean: Tensor, second: Tensor) -> Tensor:
    """Return the distance by its definition, differentiably: moments less the real mean."""
    ridge = RIDGE / WIDTH * torch.eye(WIDTH, dtype=torch.float64)
    covariance = second - torch.outer(mean, mean) + ridge
    root = moments.real_root
    values = torch.linalg.eigvalsh(root @ covariance @ root)
    traces = root.square().sum() + covariance.trace()
    found: Tensor = mean.square().sum() + traces - 2 * values.sqrt().sum()
    return found


def test_the_gradient_is_the_distances_own_by_the_present_batch() -> None:
    """As autograd finds it through the eigenvalues, over the batch's share in the moments."""
    moments = made(normal(40, 1))
    batch = normal(5, 2).requires_grad_()
    older = (normal(30, 3) * moments.scale - moments.real_mean).detach()
    share = 0.25

    def taken(one: Tensor) -> tuple[Tensor, Tensor]:
        found = one * moments.scale - moments.real_mean
        mean = (1 - share) * older.mean(0) + share * found.mean(0)
        second = (1 - share) * older.T @ older / 30 + share * found.T @ found / len(one)
        return mean, second

    expected = distance(moments, *taken(batch))
    (gradient,) = torch.autograd.grad(expected, batch)
    mean, second = taken(batch.detach())
    moments.mean.copy_(mean)
    moments.second.copy_(second)
    moments.begin_step()
    value = moments(batch)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    (found,) = torch.autograd.grad(value, batch)
    torch.testing.assert_close(found, gradient / share, rtol=1e-7, atol=1e-10)


def test_products_alone_find_the_same_roots() -> None:
    moments = made(normal(40, 1))
    covariance = normal(7, 2).T.cov() + 1e-4 * torch.eye(WIDTH, dtype=torch.float64)
    value, transport = transport_map(moments.real_root, covariance)
    root = moments.real_root
    trace, inverse = roots_by_products(root @ covariance @ root)
    torch.testing.assert_close(root @ inverse @ root, transport, rtol=1e-7, atol=1e-9)
    assert value.item() == pytest.approx(
        (root.square().sum() + covariance.trace() - 2 * trace).item(), rel=1e-9
    )
    torch.testing.assert_close(transport @ covariance @ transport, root @ root)


def test_real_features_of_all_groups_count_alike_and_are_at_no_distance() -> None:
    real = normal(50, 1) * torch.tensor([100.0, 100, 1, 1, 1, 1], dtype=torch.float64)
    moments = made(real)
    variances = (real * moments.scale).var(0, correction=0)
    assert [float(one.sum()) for one in variances.split(WIDTHS)] == pytest.approx([0.5, 0.5])
    moments.begin_step()
    assert moments(real).item() == pytest.approx(0, abs=1e-9)
    moments.begin_step()
    assert moments.distance.item() == pytest.approx(0, abs=1e-9)
    moments(real + 1)
    moments.begin_step()
    assert moments.distance.item() > 1e-6


def test_micro_batches_leave_the_same_moments_and_a_checkpoint_all_of_them() -> None:
    real, fake = normal(40, 1), normal(8, 2)
    whole, parts = made(real), made(real)
    for one in (whole, parts):
        one.begin_step()
    value = whole(fake)
    halves = [parts(half) for half in fake.chunk(2)]
    torch.testing.assert_close(torch.stack(halves).mean(), value)
    resumed = FrechetMoments(WIDTHS, 8.0)
    resumed.load_state_dict(parts.state_dict())
    for one in (whole, parts, resumed):
        one.begin_step()
    torch.testing.assert_close(parts.pull, whole.pull)
    assert resumed.pull.equal(parts.pull)
    assert resumed(fake).equal(parts(fake))


def test_twenty_steps_bring_a_generator_closer() -> None:
    moments, layer = made(normal(400, 1), half_life=64), torch.nn.Linear(WIDTH, WIDTH).double()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(21, 64, WIDTH, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(WIDTH))
        layer.bias.zero_()

    def measured() -> float:
        found = (layer(noise[-1]) * moments.scale - moments.real_mean).detach()
        return float(distance(moments, found.mean(0), found.T @ found / len(found)))

    before = measured()
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    for latent in noise[:20]:
        moments.begin_step()
        optimizer.zero_grad()
        moments(layer(latent)).backward()
        optimizer.step()
    assert measured() < 0.5 * before
