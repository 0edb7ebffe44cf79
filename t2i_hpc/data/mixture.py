"""Several data sets as one stream, in shares that are exact and in an order without state.

Positions are cut into blocks of 1,024. The shares say how many positions of a block belong to each
data set: what the shares give up to the end of the block, rounded down, less what they gave up to
its begin; the largest share takes the rest. So no data set is ever more than one sample a block
away from its share, however long a training is. Which positions of a block are whose is shuffled
by a hash of (seed, block).

The n-th position of a data set reads its sample number n in its own endless stream, so each has
its own order, its own epochs and its own windows of shards, as if it were trained on alone. How
many positions before a block belong to whom is arithmetic, so a jump to any position is as cheap
as anywhere else (:mod:`t2i_hpc.data.sampler`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.images import Pixels
from t2i_hpc.data.sampler import I64, Sampler, Window, key_of, shuffled
from t2i_hpc.data.split import Split
from t2i_hpc.data.storage.local_shards import Reads
from t2i_hpc.data.tar_reader import StoredSample

BLOCK = 1024
MOST = 32  # data sets: the largest share of a block is then never less than what is rounded up
_MIXTURES, _CLASSES = 5, 6  # what a key is for; the sampler has 1 to 4
_BLOCKS_KEPT = 8
_PRECISION = 10**9  # of a share's denominator


def shares_of(weights: Sequence[float], counts: Sequence[int]) -> list[Fraction]:
    """Return the share of each data set, 1 in all.

    Args:
        weights: of each; none: the numbers of their samples.
        counts: samples of each.

    Raises:
        ConfigurationError: not a weight for each, one that is not positive, or too many sets.
    """
    if weights and len(weights) != len(counts):
        raise ConfigurationError(
            f"data.weights= has {len(weights)} numbers and data.paths= {len(counts)} folders: "
            "give one for each, or none for as much of each as it has"
        )
    if len(counts) > MOST:
        raise ConfigurationError(
            f"data.paths= names {len(counts)} data sets, and {MOST} can be mixed: build some of "
            "them into one with t2i_hpc.shards"
        )
    exact = [Fraction(each).limit_denominator(_PRECISION) for each in weights or counts]
    if min(exact) <= 0:
        raise ConfigurationError(
            f"data.weights={list(weights)} must be positive: leave out what is not wanted"
        )
    return [each / sum(exact) for each in exact]


class MixtureOrder:
    """Whose each position is, and which sample it is there.

    Args:
        samplers: the order of each data set.
        shares: of each, 1 in all.
        seed: of the order.
    """

    def __init__(self, samplers: Sequence[Sampler], shares: Sequence[Fraction], seed: int) -> None:
        self._samplers, self._shares, self._seed = samplers, shares, seed
        self._largest = max(range(len(shares)), key=lambda n: shares[n])
        counts = [sampler.sample_count for sampler in samplers]
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._blocks: dict[int, _Block] = {}

    def samples(self, positions: Sequence[int]) -> I64:
        """Return the sample at each position, int64: numbered through all data sets in turn."""
        sources, turns = self.draw(positions)
        found = np.empty_like(turns)
        for source in np.unique(sources).tolist():
            own = sources == source
            inside = self._samplers[source].samples(turns[own].tolist())
            found[own] = self._first[source] + inside
        return found

    def windows(self, position: int) -> Iterator[Window]:
        """Yield the windows of all data sets from those of a position on, the soonest first.

        Where one begins is known to a block of 1,024 positions.
        """
        before = self._counts_before(position // BLOCK)
        each = [self._windows_of(source, first) for source, first in enumerate(before)]
        return heapq.merge(*each, key=lambda window: window.begin)

    def _windows_of(self, source: int, first: int) -> Iterator[Window]:
        share = self._shares[source]
        for window in self._samplers[source].windows(first):
            begin = int(window.begin / share)
            yield Window(max(0, begin - BLOCK), window.shards, source)

    def draw(self, positions: Sequence[int]) -> tuple[I64, I64]:
        """Return the data set of each position, and how many positions before it are that one's."""
        numbers, places = np.divmod(np.asarray(positions, dtype=np.int64), BLOCK)
        sources, turns = np.empty_like(places), np.empty_like(places)
        for number in np.unique(numbers).tolist():
            own, block = numbers == number, self._block(number)
            sources[own], turns[own] = block.sources[places[own]], block.turns[places[own]]
        return sources, turns

    def _block(self, number: int) -> _Block:
        if number not in self._blocks:
            while len(self._blocks) >= _BLOCKS_KEPT:
                del self._blocks[next(iter(self._blocks))]
            begins, ends = self._counts_before(number), self._counts_before(number + 1)
            sizes = np.subtract(ends, begins)
            order = shuffled(BLOCK, key_of(_MIXTURES, self._seed, number))[0]
            sources = np.repeat(np.arange(len(sizes)), sizes)[order]
            turns = np.empty(BLOCK, dtype=np.int64)
            for source, begin in enumerate(begins):
                own = sources == source
                turns[own] = begin + np.arange(np.count_nonzero(own))
            self._blocks[number] = _Block(sources, turns)
        return self._blocks[number]

    def _counts_before(self, number: int) -> list[int]:
        """Return how many positions before a block belong to each data set."""
        total = number * BLOCK
        counts = [int(share * total) for share in self._shares]
        counts[self._largest] += total - sum(counts)
        return counts


@dataclass(frozen=True)
class _Block:
    """The data set of each position of a block, and its place among that one's: (BLOCK,) each."""

    sources: I64
    turns: I64


class MixedSplits:
    """The samples of several splits, numbered through.

    Args:
        splits: with one vocabulary.
    """

    def __init__(self, splits: Sequence[Split]) -> None:
        self._splits = splits
        self._first = np.cumsum([0, *(split.count for split in splits)])

    @property
    def vocabulary(self) -> Vocabulary:
        """Of all of them."""
        return self._splits[0].vocabulary

    @property
    def reads(self) -> Reads:
        """What was read so far."""
        each = [split.reads for split in self._splits]
        counts = zip(*((one.found, one.missed, one.bytes) for one in each), strict=True)
        return Reads(*map(sum, counts))

    def sample(self, sample: int) -> StoredSample:
        """Read a sample; equal class numbers of two data sets become two classes."""
        source, inside = self._place(sample)
        stored = self._splits[source].sample(inside)
        if source == 0:
            return stored
        key = key_of(_CLASSES, source, stored.class_id)
        return replace(stored, class_id=int(key[0] >> np.uint64(1)))

    def decode(self, sample: int, stored: StoredSample) -> Pixels:
        """Decode the image of a sample that was read already.

        Raises:
            DataError: it is damaged; names the sample and its shard.
        """
        source, inside = self._place(sample)
        return self._splits[source].decode(inside, stored)

    @contextmanager
    def retries_shared(self) -> Iterator[None]:
        """Let the reads of a block share ``data.retry_seconds``, those of each server."""
        with ExitStack() as stack:
            for split in self._splits:
                stack.enter_context(split.retries_shared())
            yield

    def _place(self, sample: int) -> tuple[int, int]:
        source = int(np.searchsorted(self._first, sample, side="right")) - 1
        return source, sample - int(self._first[source])


def check_one_vocabulary(paths: Sequence[str], splits: Sequence[Split]) -> None:
    """Refuse data sets whose tokens mean different words.

    Raises:
        DataError: says which two.
    """
    first = splits[0].vocabulary.sha256
    for path, split in zip(paths, splits, strict=True):
        if split.vocabulary.sha256 != first:
            raise DataError(
                f"{path} and {paths[0]} have different vocabularies, so their tokens mean "
                f"different words: build one with vocabulary={paths[0]}/vocabulary.json, or read "
                "both with a data.tokenizer="
            )
