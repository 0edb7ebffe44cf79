"""The order of samples: exact epochs, real shuffling, and no dependence on the world."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_hpc.data.permutation import key_of, permute
from t2i_hpc.data.plan import Plan, batch_positions

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any)
SEEDS = st.integers(0, 2**63)
KNOWN_PERMUTATION = [2, 0, 9, 6, 5, 1, 8, 3, 7, 4]


@given(st.integers(1, 3000), SEEDS)
def test_a_permutation_of_any_size(size: int, seed: int) -> None:
    values = np.arange(size, dtype=np.uint64)
    keys = np.repeat(key_of(seed), size)
    assert sorted(permute(values, np.full_like(values, size), keys).tolist()) == list(range(size))


def test_a_permutation_needs_no_memory() -> None:
    size = 10**12
    values = np.array([0, 1, size - 1], dtype=np.uint64)
    placed = permute(values, np.full_like(values, size), np.repeat(key_of(7), 3))
    assert len({int(value) for value in placed if value < size}) == 3


def test_the_order_is_the_same_on_every_machine() -> None:
    values = np.arange(10, dtype=np.uint64)
    keys = np.repeat(key_of(1, 2, 3), 10)
    assert permute(values, np.full_like(values, 10), keys).tolist() == KNOWN_PERMUTATION


def test_every_value_goes_everywhere_equally_often() -> None:
    size, draws = 12, 12_000
    keys = key_of(np.arange(draws, dtype=np.uint64))
    for value in (0, 5, 11):
        values = np.full(draws, value, dtype=np.uint64)
        counts = np.bincount(
            permute(values, np.full_like(values, size), keys).astype(int), minlength=size
        )
        deviation = ((counts - draws / size) ** 2 / (draws / size)).sum()
        assert deviation < 31.3  # chi-square of 11 degrees of freedom, p = 0.001


@settings(deadline=None)
@given(COUNTS, SEEDS, st.integers(1, 10), st.integers(0, 4))
def test_every_sample_once_an_epoch(counts: list[int], seed: int, window: int, epoch: int) -> None:
    plan = Plan(counts, seed, window)
    total = sum(counts)
    assert plan.sample_count == total
    located = [plan.locate(position) for position in range(epoch * total, (epoch + 1) * total)]
    assert {number for number, _ in located} == {epoch}
    assert sorted(index for _, index in located) == list(range(total))


@settings(deadline=None)
@given(COUNTS, SEEDS, st.integers(1, 4), st.integers(0, 100), st.integers(1, 40))
def test_any_part_of_the_stream_equals_the_whole_streams(
    counts: list[int], seed: int, window: int, start: int, length: int
) -> None:
    whole = Plan(counts, seed, window).indices(range(start + length))
    part = Plan(counts, seed, window).indices(range(start, start + length))
    assert part.tolist() == whole[start:].tolist()


@given(st.integers(0, 10**9), st.integers(1, 16))
def test_the_parts_of_all_ranks_are_the_global_batch(start: int, share: int) -> None:
    whole = list(range(start, start + 4 * share))
    for world in (1, 2, 4):
        parts = [batch_positions(start, 4 * share, rank, world) for rank in range(world)]
        assert [position for part in parts for position in part] == whole
        assert len({len(part) for part in parts}) == 1


@pytest.mark.parametrize("counts", [[50] * 20, [1000]])
def test_epochs_and_seeds_differ(counts: list[int]) -> None:
    orders = [
        Plan(counts, seed, 4).indices(range(epoch * 1000, (epoch + 1) * 1000)).tolist()
        for seed in (1, 2)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4
    for other in orders[1:]:
        same = sum(a == b for a, b in zip(orders[0], other, strict=True))
        assert same < 10  # 1 is expected


def test_samples_are_shuffled_over_their_window_and_not_beyond() -> None:
    counts, window = [100] * 10, 2
    indices = Plan(counts, 3, window).indices(range(1000))
    for place in range(0, 1000, 200):
        shards = set((indices[place : place + 200] // 100).tolist())
        assert len(shards) == window
        early = set((indices[place : place + 20] // 100).tolist())
        assert early == shards  # both shards of the window from the start on
    neighbours = np.abs(np.diff(indices)) == 1
    assert neighbours.mean() < 0.05  # shard order would give 0.99; 0.01 is expected
    correlation = np.corrcoef(indices[:200] % 100, np.arange(200))[0, 1]
    assert abs(correlation) < 0.25


def test_neighbours_of_one_epoch_are_not_neighbours_of_the_next() -> None:
    plan = Plan([100] * 10, 3, 2)
    windows = [
        {
            frozenset((plan.indices(range(b, b + 200)) // 100).tolist())
            for b in range(s, s + 1000, 200)
        }
        for s in (0, 1000)
    ]
    assert windows[0] != windows[1]


def test_a_window_over_all_shards_mixes_everything() -> None:
    indices = Plan([30] * 30, 1, 30).indices(range(90))
    assert len(set((indices // 30).tolist())) > 20


def test_far_positions_and_many_samples_cost_nothing() -> None:
    plan = Plan([10**6] * 1000, 1, 8)
    epoch, index = plan.locate(7 * 10**9 + 123)
    assert epoch == 7
    assert 0 <= index < 10**9


def test_a_plan_travels_to_workers() -> None:
    plan = Plan([5, 7], 1, 1)
    plan.indices(range(30))
    copy: Plan = pickle.loads(pickle.dumps(plan))
    assert copy.indices(range(60)).tolist() == Plan([5, 7], 1, 1).indices(range(60)).tolist()


def test_an_empty_data_set_has_no_plan() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Plan([0, 0], 1, 1)
