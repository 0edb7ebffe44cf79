"""The order of samples: exact epochs, real shuffling, and no dependence on the world."""

from __future__ import annotations

import hashlib
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_hpc.data.sampler import RankSlice, Sampler, key_of, permute, shuffled

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any)
SEEDS = st.integers(0, 2**63)
GROUPS = st.integers(1, 5)
PARTS = st.tuples(st.integers(0, 100), st.integers(1, 40))
KNOWN_PERMUTATION = [2, 0, 9, 6, 5, 1, 8, 3, 7, 4]
KNOWN_FIRST_ORDER = [0, 8, 2, 9, 2, 0, 1, 6, 9, 4, 7, 5, 8, 3]
KNOWN_ORDER = [4, 10, 9, 8, 12, 9, 10, 13, 8, 11, 3, 4, 6, 5]
KNOWN_ORDERS = {  # counts, seed, window: SHA-256 of two epochs' indices, every fifth
    (1024, 5, 8): "94f445f69f24d2ab1a99b5acfa87565cd4e7242a878af002f177f6b5168ddddc",
    (900, 2**63, 2000): "18d142c26a6542247abcaf78acebe139871597015707e84cd47cba42f08afbac",
}
KNOWN_FIRST_ORDERS = {  # the same of splits of format 2
    (1024, 5, 8): "5df66b065f5255c030c7c68755e5f4e80c611c621878cc109243496ef54081b0",
    (900, 2**63, 2000): "6d6b58d32dc6fa03ee6013b57b0ebf720d9277a01148cbf53478a9e1bdaac14d",
}


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
@given(COUNTS, SEEDS, st.integers(1, 10), st.integers(0, 4), GROUPS)
def test_every_sample_once_an_epoch(
    counts: list[int], seed: int, window: int, epoch: int, group: int
) -> None:
    sampler = Sampler(counts, seed, window, group)
    total = sum(counts)
    assert sampler.sample_count == total
    located = [sampler.locate(position) for position in range(epoch * total, (epoch + 1) * total)]
    assert {number for number, _ in located} == {epoch}
    assert sorted(index for _, index in located) == list(range(total))


@settings(deadline=None)
@given(COUNTS, SEEDS, st.integers(1, 4), PARTS, GROUPS)
def test_any_part_of_the_stream_equals_the_whole_streams(
    counts: list[int], seed: int, window: int, part_of: tuple[int, int], group: int
) -> None:
    start, length = part_of
    whole = Sampler(counts, seed, window, group).samples(range(start + length))
    part = Sampler(counts, seed, window, group).samples(range(start, start + length))
    assert part.tolist() == whole[start:].tolist()


@settings(deadline=None)
@given(COUNTS, SEEDS, st.lists(st.integers(0, 400), min_size=1, max_size=30), GROUPS)
def test_the_order_of_queries_does_not_matter(
    counts: list[int], seed: int, positions: list[int], group: int
) -> None:
    straight = Sampler(counts, seed, 2, group).samples(range(401))
    asked = Sampler(counts, seed, 2, group)
    assert asked.samples(positions).tolist() == straight[positions].tolist()
    assert [asked.locate(place)[1] for place in positions] == straight[positions].tolist()


@pytest.mark.parametrize(
    ("order", "known", "digests"),
    [(1, KNOWN_FIRST_ORDER, KNOWN_FIRST_ORDERS), (2, KNOWN_ORDER, KNOWN_ORDERS)],
)
def test_the_order_of_up_to_1024_shards_is_known(
    order: int, known: list[int], digests: dict[tuple[int, int, int], str]
) -> None:
    few = Sampler([3, 0, 5, 2, 4], 11, 2, order=order)
    assert few.samples(range(10, 24)).tolist() == known
    for (shards, seed, window), digest in digests.items():
        counts = [number % 7 for number in range(shards)]
        places = range(0, 2 * sum(counts), 5)
        indices = Sampler(counts, seed, window, order=order).samples(places).astype("<i8")
        assert hashlib.sha256(indices.tobytes()).hexdigest() == digest


def unevenness(orders: np.ndarray) -> float:
    """Return chi-square over its degrees of freedom of the first two of each order (K, n)."""
    count = orders.shape[1]
    table = np.bincount(orders[:, 0] * count + orders[:, 1], minlength=count * count)
    pairs = table.reshape(count, count)[~np.eye(count, dtype=bool)]
    expected = len(orders) / len(pairs)
    return float(((pairs - expected) ** 2 / expected).sum() / (len(pairs) - 1))


@pytest.mark.parametrize("count", [5, 8])
def test_every_order_of_few_shards_is_equally_likely(count: int) -> None:
    """Pairs tell what single places do not: the orders of splits of format 2 are up to 5 % off."""
    keys = key_of(np.arange(200_000, dtype=np.uint64))
    assert unevenness(shuffled(count, keys)) < 1.8
    values = np.tile(np.arange(count, dtype=np.uint64), len(keys))
    before = permute(values, np.full_like(values, count), np.repeat(keys, count))
    assert unevenness(before.astype(np.int64).reshape(-1, count)) > 2.5


def shards_in_order(sampler: Sampler, epoch: int, shards: int) -> list[int]:
    """Return the shards of an epoch in their order, where each has one sample and window 1."""
    order: list[int] = sampler.samples(range(epoch * shards, (epoch + 1) * shards)).tolist()
    return order


def test_groups_and_their_shards_are_shuffled() -> None:
    sampler = Sampler([1] * 48, 1, 1, 8)
    orders = [shards_in_order(sampler, epoch, 48) for epoch in range(3)]
    dealt = [[{n % 6 for n in order[b : b + 8]} for b in range(0, 48, 8)] for order in orders]
    assert all(len(group) == 1 for groups in dealt for group in groups)
    assert dealt[0] != dealt[1] != dealt[2]
    inside = [[n // 6 for n in order if n % 6 == group] for order in orders for group in range(6)]
    assert len({tuple(order) for order in inside}) == 18


def test_a_group_is_a_cross_section_of_the_stored_order() -> None:
    order = shards_in_order(Sampler([1] * 4096, 1, 1), 0, 4096)
    for begin in range(0, 4096, 1024):
        part = np.array(order[begin : begin + 1024]) // 1024
        assert np.bincount(part, minlength=4).tolist() == [256] * 4


def test_windows_lie_inside_a_group() -> None:
    sampler = Sampler([10] * 12, 5, 4, 6)
    for epoch in range(2):
        shards = sampler.samples(range(epoch * 120, (epoch + 1) * 120)) // 10
        for begin, end in ((0, 40), (40, 60), (60, 100), (100, 120)):
            assert len(set(shards[begin:end].tolist())) == (end - begin) // 10
        assert len({number % 2 for number in shards[:60].tolist()}) == 1


def test_a_window_is_not_cut_by_the_groups_size() -> None:
    assert len(set((Sampler([30] * 40, 1, 20, 4).samples(range(600)) // 30).tolist())) == 20


@given(st.integers(0, 10**9), st.integers(1, 16))
def test_the_slices_of_all_ranks_are_the_global_batch(start: int, share: int) -> None:
    whole = list(range(start, start + 4 * share))
    for world in (1, 2, 4):
        slices = [RankSlice(4 * share, rank, world) for rank in range(world)]
        assert [position for one in slices for position in one.positions(start, 0)] == whole
        assert {one.size for one in slices} == {4 * share // world}


@given(st.integers(0, 10**9), st.integers(1, 6), st.integers(1, 4))
def test_a_micro_batch_of_all_ranks_is_the_same_in_any_world(
    start: int, share: int, parts: int
) -> None:
    size = 4 * share * parts
    for world in (1, 2, 4):
        ranks = [RankSlice(size, rank, world, parts).positions(start, 1) for rank in range(world)]
        own = len(ranks[0]) // parts
        for part in range(parts):
            cut = slice(part * own, (part + 1) * own)
            together = [position for rank in ranks for position in rank[cut]]
            begin = start + size + part * size // parts
            assert together == list(range(begin, begin + size // parts))


@pytest.mark.parametrize("counts", [[50] * 20, [1000]])
def test_epochs_and_seeds_differ(counts: list[int]) -> None:
    orders = [
        Sampler(counts, seed, 4).samples(range(epoch * 1000, (epoch + 1) * 1000)).tolist()
        for seed in (1, 2)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4
    for other in orders[1:]:
        same = sum(a == b for a, b in zip(orders[0], other, strict=True))
        assert same < 10  # 1 is expected


def test_samples_are_shuffled_over_their_window_and_not_beyond() -> None:
    counts, window = [100] * 10, 2
    indices = Sampler(counts, 3, window).samples(range(1000))
    for place in range(0, 1000, 200):
        shards = set((indices[place : place + 200] // 100).tolist())
        assert len(shards) == window
        early = set((indices[place : place + 20] // 100).tolist())
        assert early == shards  # both shards of the window from the start on
    neighbors = np.abs(np.diff(indices)) == 1
    assert neighbors.mean() < 0.05  # shard order would give 0.99; 0.01 is expected
    correlation = np.corrcoef(indices[:200] % 100, np.arange(200))[0, 1]
    assert abs(correlation) < 0.25


def test_neighbors_of_one_epoch_are_not_neighbors_of_the_next() -> None:
    sampler = Sampler([100] * 10, 3, 2)
    windows = [
        {
            frozenset((sampler.samples(range(b, b + 200)) // 100).tolist())
            for b in range(s, s + 1000, 200)
        }
        for s in (0, 1000)
    ]
    assert windows[0] != windows[1]


def test_a_window_over_all_shards_mixes_everything() -> None:
    indices = Sampler([30] * 30, 1, 30).samples(range(90))
    assert len(set((indices // 30).tolist())) > 20


def test_a_jump_among_a_million_shards_takes_no_arrays_of_their_size() -> None:
    """1,000 groups of 1,000 shards: a jump shuffles two lists of 1,000."""
    sampler = Sampler(np.full(10**6, 1000), 1, 8)
    tracemalloc.start()
    try:
        located = [sampler.locate(position) for position in (7 * 10**9 + 123, 5, 3 * 10**12 + 1)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [epoch for epoch, _ in located] == [7, 0, 3000]
    assert all(0 <= index < 10**9 for _, index in located)
    assert peak < 4 * 10**6  # one number a shard would be 8 * 10**6


def test_visited_places_are_not_kept_for_ever() -> None:
    sampler = Sampler([1] * 100, 1, 1, 10)
    sampler.samples(range(1000))
    assert len(pickle.dumps(sampler)) < 10_000


def test_more_than_a_million_shards_make_no_more_groups_than_shards_in_one() -> None:
    shards = 1500**2
    sampler = Sampler(np.ones(shards, dtype=np.int64), 1, 1)
    first = sampler.samples(range(1500))
    assert len(set((first % 1500).tolist())) == 1


def test_a_sampler_travels_to_workers() -> None:
    sampler = Sampler([5, 7], 1, 1)
    sampler.samples(range(30))
    copy: Sampler = pickle.loads(pickle.dumps(sampler))
    assert copy.samples(range(60)).tolist() == Sampler([5, 7], 1, 1).samples(range(60)).tolist()


def test_an_empty_data_set_has_no_order() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Sampler([0, 0], 1, 1)
