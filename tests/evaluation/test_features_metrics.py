"""Metrics of features and logits against torch-fidelity, against prdc and by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation import density_coverage, neighbors, precision_recall, screening
from t2i_hpc.evaluation.collectors import FeatureBatch, groups_of
from t2i_hpc.evaluation.inception_score import ScoreSums, inception_score
from t2i_hpc.evaluation.kid import kernel_distance
from t2i_hpc.evaluation.mind import monge_distance
from t2i_hpc.evaluation.neighbors import Neighborhoods

CPU = torch.device("cpu")
Rows = npt.NDArray[np.float32]
Pair = tuple[float, float]
PRDC_DENSITY, PRDC_COVERAGE = 0.376, 83 / 130
MIND = 16.28222966194153


def precision_and_recall(generated: Rows, real: Rows, k: int, device: torch.device) -> Pair:
    return precision_recall.precision_and_recall(Neighborhoods.of(generated, real, k, device))


def density_and_coverage(generated: Rows, real: Rows, k: int, device: torch.device) -> Pair:
    return density_coverage.density_and_coverage(Neighborhoods.of(generated, real, k, device))


def _rows(count: int, seed: int, shift: float = 0.0) -> Rows:
    values = np.random.default_rng(seed).standard_normal((count, 12)) + shift
    return values.astype(np.float32)


@pytest.mark.parametrize(("images", "groups"), [(10, 3), (53, 10), (7, 7), (4, 1)])
def test_groups_are_equal_and_shuffled(images: int, groups: int) -> None:
    member = groups_of(images, groups, seed=1)
    sizes = np.bincount(member, minlength=groups)
    assert sizes.sum() == images
    assert sizes.max() - sizes.min() <= 1
    if 1 < groups < images:
        assert not np.array_equal(member, np.sort(member))
        assert not np.array_equal(member, groups_of(images, groups, seed=2))


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_inception_score_is_torch_fidelitys(splits: int) -> None:
    logits = torch.from_numpy(_rows(53, 1) * 3)
    sums = ScoreSums(groups_of(53, splits, 7), splits, 12, CPU)
    for start in range(0, 53, 8):
        batch = logits[start : start + 8]
        sums.add(FeatureBatch(range(start, start + len(batch)), batch, batch, batch))
    expected = isc_features_to_metric(logits, splits, shuffle=True, rng_seed=7)
    mean, std = inception_score(sums.arrays())
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-10)
    assert std == pytest.approx(expected["inception_score_std"], rel=1e-8, abs=1e-12)


def test_inception_score_of_certain_and_of_equal_images() -> None:
    certain = torch.eye(12)[torch.arange(48) % 12] * 1000
    for logits, expected in ((certain, 12.0), (torch.zeros(48, 12), 1.0)):
        sums = ScoreSums(groups_of(48, 1, 1), 1, 12, CPU)
        sums.add(FeatureBatch(range(48), logits, logits, logits))
        assert inception_score(sums.arrays())[0] == pytest.approx(expected, rel=1e-12)


def test_kid_is_torch_fidelitys() -> None:
    generated, real = _rows(60, 1, shift=0.5), _rows(45, 2)
    expected = kid_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(real),
        kid_subsets=7,
        kid_subset_size=30,
        rng_seed=3,
        verbose=False,
    )
    mean, std = kernel_distance(generated, real, subsets=7, size=30, seed=3)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)
    assert std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-4)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_kid_of_more_images_than_a_block_is_that_of_all_pairs(offset: float) -> None:
    """Blocks of kernels cover each pair once: 600 images are no whole number of them."""
    generated, real = _rows(640, 1, shift=offset + 0.3), _rows(620, 2, shift=offset)
    draws, values = np.random.RandomState(3), []
    for _ in range(2):
        x, y = (
            rows[draws.choice(len(rows), 600, replace=False)].astype(np.float64)
            for rows in (generated, real)
        )
        within = 0.0
        for rows in (x, y):
            kernels = (rows @ rows.T / 12 + 1) ** 3
            within += kernels.sum() - kernels.trace()
        values.append(within / (600 * 599) - 2 * ((x @ y.T / 12 + 1) ** 3).mean())
    found = kernel_distance(generated, real, subsets=2, size=600, seed=3)
    assert found[0] == pytest.approx(np.mean(values), rel=1e-5)
    assert found[1] == pytest.approx(np.std(values), rel=1e-3)


def test_kid_is_unbiased_and_orders_rightly() -> None:
    real = _rows(400, 1)
    values = [
        kernel_distance(_rows(400, 2, shift), real, subsets=20, size=100, seed=1)
        for shift in (0.0, 0.3, 0.6)
    ]
    assert abs(values[0][0]) < 2 * values[0][1]
    assert values[0][0] < values[1][0] < values[2][0]


def test_kid_of_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"size=46 is more than the 45 real images"):
        kernel_distance(_rows(60, 1), _rows(45, 2), subsets=2, size=46, seed=1)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    generated, real = _rows(150, 1, shift=0.7), _rows(130, 2)
    expected = calculate_precision_recall_full(torch.from_numpy(generated), torch.from_numpy(real))
    found = precision_and_recall(generated, real, 3, CPU)
    assert found == pytest.approx(expected, abs=1e-7)
    assert 0.05 < found[0] < 0.95
    assert found[0] != found[1]


def test_precision_and_recall_by_hand() -> None:
    line: Rows = np.arange(6, dtype=np.float32)[:, None]
    near: Rows = np.array([[0.5], [1.5], [100.0], [101.0]], dtype=np.float32)
    # Real balls of radius 1 cover 0.5 and 1.5; generated ones cover 0, 1 and 2.
    assert precision_and_recall(near, line, 1, CPU) == (0.5, 0.5)
    assert precision_and_recall(line, line, 1, CPU) == (1.0, 1.0)
    with pytest.raises(EvaluationError, match="no neighbor number 4"):
        precision_and_recall(near, line, 4, CPU)


@pytest.mark.parametrize("count", [26, 1025])
def test_equal_images_have_precision_and_recall_of_one(count: int) -> None:
    for seed in range(4):
        image = np.random.default_rng(seed).standard_normal((1, 64)).astype(np.float32)
        generated, real = image.repeat(count, axis=0), image.repeat(20, axis=0)
        assert precision_and_recall(generated, real, 3, CPU) == (1.0, 1.0)
        assert precision_and_recall(real, generated, 3, CPU) == (1.0, 1.0)


def _squares(first: Rows, second: Rows) -> npt.NDArray[np.float64]:
    """Squared distances of all pairs from float64 differences."""
    return np.stack([np.square(second.astype(np.float64) - row).sum(1) for row in first])


def _brute_force(generated: Rows, real: Rows, k: int) -> tuple[float, float]:
    """Precision and recall from all pairs."""
    radii = [np.sort(_squares(rows, rows), axis=1)[:, k] for rows in (generated, real)]
    apart = _squares(generated, real)
    return (
        float((apart <= radii[1]).any(1).mean()),
        float((radii[0] >= apart.T).any(1).mean()),
    )


def _images_like(count: int, seed: int, spread: float, offset: float) -> Rows:
    """Features near a space of few coordinates, in clusters, some images twice."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    basis = shared.standard_normal((30, 420)) * (np.arange(1, 31) ** -0.5)[:, None]
    middles = shared.standard_normal((5, 30)) * 4
    points = middles[own.integers(5, size=count)] + own.standard_normal((count, 30))
    noise = 0.3 * own.standard_normal((count, 420))
    rows = ((points @ basis + noise) * spread + offset).astype(np.float32)
    rows[:20] = rows[20:40]
    return rows


def _screen(patch: pytest.MonkeyPatch, leading: int, narrow: int, by_bytes: bool) -> None:
    patch.setattr(screening, "multiplies_bytes", lambda device: by_bytes)
    patch.setattr(screening, "_LEADING", leading)
    patch.setattr(screening, "AT_ONCE", 128)
    patch.setattr(screening, "_COLUMNS", 96)
    patch.setattr(neighbors, "_NARROW", narrow)  # 0: by products in float64


@pytest.mark.parametrize("images", [(1.0, 0.0), (0.1, 100.0), (1e-3, 1.0)])
@pytest.mark.parametrize(
    "screen",
    [(60, 512, True), (60, 512, False), (400, 512, False), (1000, 512, True), (60, 0, False)],
)
def test_precision_and_recall_are_those_of_all_pairs(
    images: tuple[float, float],
    screen: tuple[int, int, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _screen(monkeypatch, *screen)
    generated, real = (_images_like(n, seed, *images) for n, seed in ((410, 1), (390, 2)))
    found = precision_and_recall(generated, real, 3, CPU)
    assert found == _brute_force(generated, real, 3)
    assert 0.02 < found[0] < 0.98


def test_precision_and_recall_with_many_neighbors() -> None:
    generated, real = _images_like(410, 1, 1.0, 0.0), _images_like(390, 2, 1.0, 0.0)
    assert precision_and_recall(generated, real, 300, CPU) == _brute_force(generated, real, 300)


def test_density_and_coverage_are_prdcs() -> None:
    """What prdc 0.2, the authors' package, gives for the same rows."""
    generated, real = _rows(150, 1, shift=0.7), _rows(130, 2)
    found = density_and_coverage(generated, real, 5, CPU)
    assert found == pytest.approx((PRDC_DENSITY, PRDC_COVERAGE), abs=1e-12)


def test_density_and_coverage_by_hand() -> None:
    line: Rows = np.arange(6, dtype=np.float32)[:, None]
    near: Rows = np.array([[0.5], [1.5], [100.0], [101.0]], dtype=np.float32)
    # Balls of radius 1: 0.5 is in those of 0 and 1, 1.5 in those of 1 and 2.
    assert density_and_coverage(near, line, 1, CPU) == (1.0, 0.5)
    assert density_and_coverage(line, line, 1, CPU) == (16 / 6, 1.0)
    with pytest.raises(EvaluationError, match="no neighbor number 4"):
        density_and_coverage(near, line, 4, CPU)


@pytest.mark.parametrize("images", [(1.0, 0.0), (0.1, 100.0), (1e-3, 1.0)])
@pytest.mark.parametrize("screen", [(60, 512, True), (1000, 512, False), (60, 0, True)])
def test_density_and_coverage_are_those_of_all_pairs(
    images: tuple[float, float],
    screen: tuple[int, int, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _screen(monkeypatch, *screen)
    generated, real = (_images_like(n, seed, *images) for n, seed in ((410, 1), (390, 2)))
    inside = _squares(generated, real) <= np.sort(_squares(real, real), axis=1)[:, 3]
    density, coverage = density_and_coverage(generated, real, 3, CPU)
    assert (density, coverage) == (inside.sum() / (3 * 410), inside.any(0).mean())
    assert 0.02 < coverage < 0.98


def test_mind_is_torch_fidelitys() -> None:
    """What torch-fidelity's repository at 5e211a9 gives for the same rows and seed."""
    generated, real = _rows(150, 1, shift=0.7), _rows(130, 2)
    found = monge_distance(generated, real, directions=200, seed=3, device=CPU)
    assert found == pytest.approx(MIND, rel=1e-6)


def test_mind_of_a_shift_is_that_of_its_length() -> None:
    """The sorted projections on u differ by u·s; over all directions 3 D E (u·s)² = 3 |s|²."""
    rows = _rows(64, 1)
    shift = np.linspace(-1, 1, 12, dtype=np.float32)
    found = monge_distance(rows + shift, rows, directions=20_000, seed=1, device=CPU)
    assert found == pytest.approx(3 * float(shift @ shift), rel=0.03)
    assert monge_distance(rows, rows, directions=10, seed=1, device=CPU) == 0
