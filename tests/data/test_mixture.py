"""Mixtures of data sets: exact shares, each set's own order, and nothing to remember."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.mixture import BLOCK, MixtureOrder, shares_of
from t2i_hpc.data.sampler import RankSlice, Sampler
from t2i_hpc.data.training_data import TrainingData, open_training_data
from tests.support.data import make_shards

WEIGHTS = (1, 3, 0.25)
COUNTS = ((5, 6), (400, 300, 37), (9,))


def order(weights: tuple[float, ...] = WEIGHTS, seed: int = 1) -> MixtureOrder:
    samplers = [Sampler(counts, seed, 2) for counts in COUNTS[: len(weights)]]
    return MixtureOrder(samplers, shares_of(weights, [1] * len(weights)), seed)


def test_shares_are_exact_at_every_block() -> None:
    sources, _ = order().draw(range(40 * BLOCK))
    for block in range(1, 41):
        found = Counter(sources[: block * BLOCK].tolist())
        for source, share in enumerate(shares_of(WEIGHTS, [1, 1, 1])):
            assert abs(found[source] - share * block * BLOCK) <= len(WEIGHTS) - 1


def test_each_data_set_is_read_in_its_own_order() -> None:
    """As if it were trained on alone, epoch after epoch."""
    mixed = order()
    sources, turns = mixed.draw(range(5 * BLOCK))
    samples, first = mixed.samples(range(5 * BLOCK)), 0
    for source, counts in enumerate(COUNTS):
        own = sources == source
        assert turns[own].tolist() == list(range(own.sum()))
        alone = Sampler(counts, 1, 2).samples(range(own.sum()))
        assert (samples[own] - first == alone).all()
        first += sum(counts)


def test_positions_of_a_block_are_shuffled_and_depend_on_the_seed() -> None:
    sources = [order(seed=seed).draw(range(2 * BLOCK))[0] for seed in (1, 2)]
    assert (sources[0] != sources[1]).any()
    assert (sources[0][:BLOCK] != sources[0][BLOCK:]).any()
    longest = max(len(list(run)) for _, run in itertools.groupby((sources[0] == 1).tolist()))
    assert longest < 40


def test_a_jump_needs_nothing_of_what_came_before() -> None:
    far = 10**12 + 7
    assert (order().samples([far]) == order().samples(range(far - 600, far + 600))[600]).all()


@pytest.mark.parametrize("count", [2, 32])
def test_many_small_shares_still_fill_every_block(count: int) -> None:
    shares = shares_of([1] + [1e-7] * (count - 1), [1] * count)
    samplers = [Sampler([3], 1, 1)] * count
    for shares_ in (shares, shares_of([1] * count, [1] * count)):
        mixed = MixtureOrder(samplers, shares_, 1)
        for block in range(2000):
            begin, end = mixed._counts_before(block), mixed._counts_before(block + 1)
            assert (np.subtract(end, begin) >= 0).all()
            assert sum(end) - sum(begin) == BLOCK


def test_without_weights_each_counts_by_its_size() -> None:
    assert shares_of([], [1, 3]) == [Fraction(1, 4), Fraction(3, 4)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> list[str]:
    """Two data sets with one vocabulary and the same class numbers, and one with another."""
    made = tmp_path_factory.mktemp("second")
    second = make_shards(made, count=30, size=64)
    return [str(shards), str(second)]


def data_of(folders: list[str], **more: Any) -> TrainingData:
    return open_training_data(DataConfig(paths=folders, workers=0, **more))


def batches(data: TrainingData, start: int, count: int, world: int = 1) -> list[Batch]:
    loaders = [data.loader(64, 1, RankSlice(8, rank, world)) for rank in range(world)]
    made = [list(itertools.islice(loader.batches(start), count)) for loader in loaders]
    return [batch for step in zip(*made, strict=True) for batch in step]


def test_batches_are_the_same_on_any_world_and_after_any_restart(folders: list[str]) -> None:
    data = data_of(folders, weights=[1, 3])
    whole, later = batches(data, 0, 6), batches(data, 32, 2)
    halves = batches(data, 0, 6, world=2)
    for name in ("images", "tokens", "classes", "positions"):
        one = torch.cat([getattr(batch, name) for batch in whole])
        assert torch.equal(one[32:], torch.cat([getattr(batch, name) for batch in later]))
        assert torch.equal(one, torch.cat([getattr(batch, name) for batch in halves]))


def test_equal_class_numbers_of_two_sets_are_two_classes(folders: list[str]) -> None:
    data = data_of(folders, weights=[1, 1])
    classes: dict[str, set[int]] = {}
    for batch in batches(data, 0, 8):
        for key, number in zip(batch.keys, batch.classes.tolist(), strict=True):
            classes.setdefault(key, set()).add(number)
    assert max(map(len, classes.values())) == 2  # the same image, in both sets


def test_the_run_is_another_one_with_other_shares(folders: list[str]) -> None:
    first, second = (data_of(folders, weights=weights) for weights in ([1, 3], [1, 2]))
    assert first.identity != second.identity
    assert first.identity == data_of(folders, weights=[2, 6]).identity
    assert first.samples == 54
    assert first.summary == (
        f"54 samples of 2 data sets: 25.0% {folders[0]} (24), 75.0% {folders[1]} (30)"
    )


def test_vocabulary_and_test_split_come_from_one_of_them(folders: list[str]) -> None:
    assert DataConfig(path="demo", paths=folders).path == folders[0]
    assert DataConfig(path=folders[1], paths=folders).path == folders[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"weights": [1.0]}, "1 numbers and data.paths= 2 folders"),
        ({"weights": [1.0, 0.0]}, "must be positive"),
        ({"reader": "webdataset", "urls": ["x.tar"]}, "leave out data.reader=webdataset"),
    ],
)
def test_contradictions_are_refused(folders: list[str], more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        data_of(folders, **more)
    with pytest.raises(ConfigurationError, match=r"belongs to data\.paths="):
        open_training_data(DataConfig(path=folders[0], weights=[1.0]))


def test_two_vocabularies_are_refused(folders: list[str]) -> None:
    with pytest.raises(DataError, match=r"different vocabularies.*vocabulary=.*tokenizer="):
        data_of([folders[0], "demo"])


def test_windows_of_a_mixture_come_before_their_samples() -> None:
    samplers = [Sampler([50] * 40, 3, 4), Sampler([30] * 7, 3, 2)]
    order = MixtureOrder(samplers, shares_of([1, 3], [2000, 210]), 3)
    firsts = [0, 2000]
    sizes = [50, 30]
    for start in (0, 5000):
        known: set[tuple[int, int]] = set()
        windows = order.windows(start)
        ahead = next(windows)
        for position in range(start, start + 4000, 7):
            while ahead.begin <= position:
                known |= {(ahead.source, shard) for shard in ahead.shards}
                ahead = next(windows)
            (sample,) = order.samples([position]).tolist()
            source = int(sample >= firsts[1])
            assert (source, (sample - firsts[source]) // sizes[source]) in known
