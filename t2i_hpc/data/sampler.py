"""The order of samples as a pure function of (seed, position).

The stream of samples is endless: position 0, 1, 2, … over all epochs without a seam. Each
epoch the shards are shuffled, consecutive shards form windows, and the samples of a window are
shuffled together: neighbors in time come from few shards, which the page cache of a node or a
slow network file system is grateful for, and yet neighbors of one epoch are not neighbors of
the next. A rank's batch is a slice of positions, so the order knows nothing of ranks, workers
or restarts; a run resumes from one integer, the number of samples seen.

Up to 1,024 shards are shuffled as one list. More of them are dealt, like cards, into the fewest
groups of at most 1,024 (of the square root of their number beyond a million, so that there are
never more groups than shards in one). An epoch shuffles the groups, and then the shards inside
a group, of which windows are made. What a position needs is the order of the groups and that of
its own group, both short: no array over all shards is ever shuffled, so a jump to any epoch
takes less than a millisecond for 10⁹ samples in 10⁶ shards (benchmarks/plan.py). Every G-th
shard belongs to the same of G groups, so a group is a cross-section of a data set that is
stored sorted, by class say; which shards share a group is the same in all epochs.

A rank's part of the global batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.data.permutation import Words, key_of, permute, shuffled

Numbers = npt.NDArray[np.int64]
GROUP = 1024  # shards; with as many groups, both levels of 10⁶ shards take 0.1 ms each
_SHARDS, _SAMPLES, _GROUPS = 1, 2, 3  # what a key is for
ORDER = 2  # of the shards: 1 as splits of format 2 have it, 2 as all others
_ORDERS_KEPT = 8  # a batch at the seam of two epochs needs four


@dataclass(frozen=True)
class _Order:
    """Parts of the data set, groups or shards, in shuffled order.

    Attributes:
        parts: number of the part at each place.
        starts: samples before each place; one more entry than places, the last is the total.
    """

    parts: Numbers
    starts: Numbers

    @classmethod
    def shuffle(cls, counts: Numbers, key: Words, order: int) -> _Order:
        """Shuffle parts of `counts` samples by a key (1,).

        They are sorted by random numbers, which makes every order equally likely. Order 1 permutes
        by a Feistel network, whose orders of fewer than 20 parts are not quite (up to 5 % off).
        """
        places = np.arange(len(counts), dtype=np.uint64)
        if order == 1:
            sizes = np.full_like(places, len(counts))
            parts = permute(places, sizes, np.repeat(key, len(counts))).astype(np.int64)
        else:
            parts = shuffled(len(counts), key)[0]
        return cls(parts, _starts(counts[parts]))


class Sampler:
    """Which sample stands at which position.

    Args:
        counts: samples of each shard, in the order of the index.
        seed: of the order.
        window: number of shards whose samples are shuffled together; windows end with their
            group, so some may be smaller.
        group: number of shards that are shuffled as one list, at least; part of the order.
        order: how shards are ordered, :data:`ORDER` or that of an older split.
    """

    def __init__(
        self,
        counts: Sequence[int] | Numbers,
        seed: int,
        window: int,
        group: int = GROUP,
        *,
        order: int = ORDER,
    ) -> None:
        self._order = order
        self._counts = np.asarray(counts, dtype=np.int64)
        self._first = _starts(self._counts)
        self._seed, self._window = seed, window
        total = len(self._counts)
        self._groups = max(1, -(-total // max(group, window, isqrt(total))))
        self._windows = -(-total // (self._groups * window))  # of a group, at most
        self._group_counts = _deal(self._counts, self._groups)
        self._orders: dict[tuple[int, ...], _Order] = {}
        if not self.sample_count:
            raise ValueError("a plan needs at least one sample")

    @property
    def sample_count(self) -> int:
        """Samples of an epoch."""
        return int(self._first[-1])

    def locate(self, position: int) -> tuple[int, int]:
        """Return (epoch, sample index) of a position ≥ 0; the index is a row of index.npy."""
        return position // self.sample_count, int(self.indices([position])[0])

    def indices(self, positions: Sequence[int]) -> Numbers:
        """Return the sample index of each position, int64 (len(positions),)."""
        epochs, offsets = np.divmod(np.asarray(positions, dtype=np.int64), self.sample_count)
        found = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            found[chosen] = self._indices_of_epoch(epoch, offsets[chosen])
        return found

    def _indices_of_epoch(self, epoch: int, offsets: Numbers) -> Numbers:
        order = self._order_of_groups(epoch)
        places = _places(order.starts, offsets)
        found = np.empty_like(offsets)
        for place in np.unique(places).tolist():
            chosen = places == place
            inside = offsets[chosen] - order.starts[place]
            found[chosen] = self._indices_of_group(epoch, int(order.parts[place]), inside)
        return found

    def _indices_of_group(self, epoch: int, group: int, offsets: Numbers) -> Numbers:
        order = self._order_of_shards(epoch, group)
        windows = np.append(order.starts[: -1 : self._window], order.starts[-1])
        window = _places(windows, offsets)
        begin = windows[window]
        sizes = _words(windows[window + 1] - begin)
        keys = key_of(_SAMPLES, self._seed, epoch, _words(group * self._windows + window))
        shuffled = begin + permute(_words(offsets - begin), sizes, keys).astype(np.int64)
        place = _places(order.starts, shuffled)
        found: Numbers = self._first[order.parts[place]] + shuffled - order.starts[place]
        return found

    def _order_of_groups(self, epoch: int) -> _Order:
        if (epoch,) not in self._orders:
            key = key_of(_GROUPS, self._seed, epoch)
            self._keep((epoch,), _Order.shuffle(self._group_counts, key, self._order))
        return self._orders[epoch,]

    def _order_of_shards(self, epoch: int, group: int) -> _Order:
        if (epoch, group) not in self._orders:
            key = key_of(_SHARDS, self._seed, epoch) + np.uint64(group)
            order = _Order.shuffle(self._counts[group :: self._groups], key, self._order)
            numbers = group + self._groups * order.parts
            self._keep((epoch, group), _Order(numbers, order.starts))
        return self._orders[epoch, group]

    def _keep(self, name: tuple[int, ...], order: _Order) -> None:
        while len(self._orders) >= _ORDERS_KEPT:
            del self._orders[next(iter(self._orders))]
        self._orders[name] = order


def batch_positions(start: int, batch_size: int, rank: int, world: int) -> range:
    """Return the positions of a rank's part of the global batch that begins at `start`.

    Rank r takes the r-th of `world` contiguous slices, so the parts in rank order are the
    global batch. `batch_size` is that of the global batch, a multiple of `world`.
    """
    share = batch_size // world
    begin = start + rank * share
    return range(begin, begin + share)


def _deal(counts: Numbers, groups: int) -> Numbers:
    """Return the samples of each group: group g has the shards g, g + groups, …"""
    rounds = -(-len(counts) // groups)
    dealt = np.zeros(rounds * groups, dtype=np.int64)
    dealt[: len(counts)] = counts
    sums: Numbers = dealt.reshape(rounds, groups).sum(axis=0)
    return sums


def _places(starts: Numbers, offsets: Numbers) -> Numbers:
    """Return between which two entries of `starts` each offset lies."""
    return np.searchsorted(starts, offsets, side="right") - 1


def _starts(counts: Numbers) -> Numbers:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])


def _words(numbers: Numbers) -> Words:
    return numbers.astype(np.uint64)


@dataclass(frozen=True)
class RankSlice:
    """Part number `rank` of `world` equal parts of each global batch of `batch_size` samples.

    A batch that is made of several micro-batches, one after the other, is shared micro-batch by
    micro-batch: each is made of the same samples, in the same order, on any number of ranks.

    Raises:
        ConfigurationError: the batch cannot be divided by the number of ranks.
    """

    batch_size: int
    rank: int = 0
    world: int = 1
    micro_batches: int = 1

    def __post_init__(self) -> None:
        size, world = self.batch_size, self.world
        if size % world:
            raise ConfigurationError(
                f"engine.batch_size={size} cannot be divided by {world} ranks: take a "
                f"multiple of {world}, e.g. {world * max(1, round(size / world))}"
            )

    def positions(self, start: int) -> Callable[[int], Sequence[int]]:
        """Return what gives the positions of batch n = 0, 1, 2, … from sample `start` on."""
        size = self.batch_size // self.micro_batches

        def of_batch(number: int) -> Sequence[int]:
            begin = start + number * self.batch_size
            micro = [
                batch_positions(begin + part * size, size, self.rank, self.world)
                for part in range(self.micro_batches)
            ]
            return [position for positions in micro for position in positions]

        return of_batch
