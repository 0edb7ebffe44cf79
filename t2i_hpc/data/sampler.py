"""The order of samples as a pure function of (seed, position).

Four numbers lead from the training loop to bytes; these words mean the same everywhere:

- **position**: place of a sample in the endless stream, 0, 1, 2, … over all epochs without a gap;
- **sample**: its number in the split, 0 … count-1, shards one after the other
  (:meth:`Sampler.samples`, this file);
- **shard** and **row**: the tar that holds it, and its row among those of the tar's index
  (:meth:`t2i_hpc.data.tar_reader.Reader.read`);
- **offset**: the first byte of its files in that tar, from the row; one ``pread`` follows.

Each epoch the shards are shuffled, consecutive shards form windows, and the samples of a window
are shuffled together: neighbors in time come from few shards, which the page cache of a node or a
slow network file system is grateful for, and yet neighbors of one epoch are not neighbors of the
next. A rank's batch is a slice of positions, so the order knows nothing of ranks, workers or
restarts; a run resumes from one integer, the number of samples seen.

Up to 1,024 shards are shuffled as one list. More of them are dealt round-robin into the fewest
groups of at most 1,024 (of the square root of their number beyond a million, so that there are
never more groups than shards in one). An epoch shuffles the groups, and then the shards inside
a group, of which windows are made. What a position needs is the order of the groups and that of
its own group, both short: no array over all shards is ever shuffled, so a jump to any epoch
takes less than a millisecond for 10⁹ samples in 10⁶ shards (benchmarks/sampler.py). Every G-th
shard belongs to the same of G groups, so a group is a cross-section of a data set that is
stored sorted, by class say; which shards share a group is the same in all epochs.

Random numbers are hashes of (purpose, seed, position …): the same on every machine and with every
version of NumPy, and a batch of them costs less than one generator object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import ConfigurationError

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
GROUP = 1024  # shards; with as many groups, both levels of 10⁶ shards take 0.1 ms each
ORDER = 2  # of the shards: 1 as splits of format 2 have it, 2 as all others
_SHARDS, _SAMPLES, _GROUPS, _DRAWS = 1, 2, 3, 4  # what a key is for
_ORDERS_KEPT = 8  # a batch across two epochs needs four
_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_STEPS = np.array([[number * _GOLDEN & _MASK] for number in range(1, _ROUNDS + 1)], np.uint64)
_ONE = np.uint64(1)


class Window(NamedTuple):
    """Shards whose samples are shuffled together, and the position of the first of these.

    Attributes:
        begin: the position.
        shards: their numbers.
        source: which data set of a mixture they belong to.
    """

    begin: int
    shards: list[int]
    source: int = 0


class Sampler:
    """Which sample is at which position.

    Args:
        counts: samples of each shard.
        seed: of the order.
        window: number of shards whose samples are shuffled together; windows end with their
            group, so some may be smaller.
        group: number of shards that are shuffled as one list, at least; part of the order.
        order: how shards are ordered, :data:`ORDER` or that of an older split.
    """

    def __init__(
        self,
        counts: Sequence[int] | I64,
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
            raise ValueError("a sampler needs at least one sample")

    @property
    def sample_count(self) -> int:
        """Samples of an epoch."""
        return int(self._first[-1])

    def locate(self, position: int) -> tuple[int, int]:
        """Return (epoch, sample) of a position ≥ 0."""
        return position // self.sample_count, int(self.samples([position])[0])

    def samples(self, positions: Sequence[int]) -> I64:
        """Return the sample at each position, int64 (len(positions),)."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self.sample_count)
        found = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            found[chosen] = self._samples_of_epoch(epoch, places[chosen])
        return found

    def windows(self, position: int) -> Iterator[Window]:
        """Yield the windows from that of a position on, epoch after epoch, without end."""
        epoch, place = divmod(position, self.sample_count)
        while True:
            order = self._order_of_groups(epoch)
            for turn in range(int(_turns(order.starts, np.asarray(place))), self._groups):
                begin = int(order.starts[turn])
                for first, last, shards in self._windows_of(epoch, int(order.numbers[turn])):
                    if begin + last > place:
                        yield Window(epoch * self.sample_count + begin + first, shards)
            epoch, place = epoch + 1, 0

    def _windows_of(self, epoch: int, group: int) -> Iterator[tuple[int, int, list[int]]]:
        """Yield where each window of a group begins and ends, and its shards."""
        order = self._order_of_shards(epoch, group)
        for turn in range(0, len(order.numbers), self._window):
            shards = order.numbers[turn : turn + self._window].tolist()
            yield int(order.starts[turn]), int(order.starts[turn + len(shards)]), shards

    def _samples_of_epoch(self, epoch: int, places: I64) -> I64:
        order = self._order_of_groups(epoch)
        turns = _turns(order.starts, places)
        found = np.empty_like(places)
        for turn in np.unique(turns).tolist():
            chosen = turns == turn
            inside = places[chosen] - order.starts[turn]
            found[chosen] = self._samples_of_group(epoch, int(order.numbers[turn]), inside)
        return found

    def _samples_of_group(self, epoch: int, group: int, places: I64) -> I64:
        order = self._order_of_shards(epoch, group)
        windows = np.append(order.starts[: -1 : self._window], order.starts[-1])
        window = _turns(windows, places)
        begin = windows[window]
        sizes = (windows[window + 1] - begin).astype(np.uint64)
        numbers = (group * self._windows + window).astype(np.uint64)
        keys = key_of(_SAMPLES, self._seed, epoch, numbers)
        inside = (places - begin).astype(np.uint64)
        shuffled_places = begin + permute(inside, sizes, keys).astype(np.int64)
        turn = _turns(order.starts, shuffled_places)
        found: I64 = self._first[order.numbers[turn]] + shuffled_places - order.starts[turn]
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
            shards = group + self._groups * order.numbers
            self._keep((epoch, group), _Order(shards, order.starts))
        return self._orders[epoch, group]

    def _keep(self, name: tuple[int, ...], order: _Order) -> None:
        while len(self._orders) >= _ORDERS_KEPT:
            del self._orders[next(iter(self._orders))]
        self._orders[name] = order


@dataclass(frozen=True)
class RankSlice:
    """Slice `rank` of `world` equal slices of each global batch of `batch_size` samples.

    Each micro-batch is sliced by itself, so it is made of the same samples, in the same order, on
    any number of ranks: the slices in rank order are the global micro-batch.

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

    @property
    def size(self) -> int:
        """Samples of the slice."""
        return len(self.positions(0, 0))

    def positions(self, start: int, batch: int) -> list[int]:
        """Return the positions of this rank in global batch 0, 1, 2, … from position `start` on."""
        micro = self.batch_size // self.micro_batches
        own = micro // self.world
        begin = start + batch * self.batch_size + self.rank * own
        return [
            position
            for first in range(begin, begin + self.micro_batches * micro, micro)
            for position in range(first, first + own)
        ]


def uniform(seed: int, positions: Sequence[int], count: int) -> npt.NDArray[np.float64]:
    """Return `count` numbers from [0, 1) for each position ≥ 0: float64 (positions, count)."""
    keys = key_of(_DRAWS, seed, np.asarray(positions, dtype=np.int64).astype(np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    numbers: npt.NDArray[np.float64] = (mix(keys[:, None] + steps) >> np.uint64(11)) * 2.0**-53
    return numbers


@dataclass(frozen=True)
class _Order:
    """Groups, or shards of a group, in shuffled order.

    Attributes:
        numbers: the group or shard of each turn.
        starts: samples before each turn; one more entry than turns, the last is the total.
    """

    numbers: I64
    starts: I64

    @classmethod
    def shuffle(cls, counts: I64, key: U64, order: int) -> _Order:
        """Shuffle groups or shards of `counts` samples by a key (1,).

        They are sorted by random numbers, which makes every order equally likely. Order 1 permutes
        by a Feistel network, whose orders of fewer than 20 are not quite (up to 5 % off).
        """
        if order == 1:
            values = np.arange(len(counts), dtype=np.uint64)
            sizes = np.full_like(values, len(counts))
            numbers = permute(values, sizes, np.repeat(key, len(counts))).astype(np.int64)
        else:
            numbers = shuffled(len(counts), key)[0]
        return cls(numbers, _starts(counts[numbers]))


def _deal(counts: I64, groups: int) -> I64:
    """Return the samples of each group: group g has the shards g, g + groups, …"""
    rounds = -(-len(counts) // groups)
    dealt = np.zeros(rounds * groups, dtype=np.int64)
    dealt[: len(counts)] = counts
    sums: I64 = dealt.reshape(rounds, groups).sum(axis=0)
    return sums


def _turns(starts: I64, places: I64) -> I64:
    """Return between which two entries of `starts` each place is."""
    return np.searchsorted(starts, places, side="right") - 1


def _starts(counts: I64) -> I64:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])


# --- shuffling without a list


def permute(values: U64, sizes: U64, keys: U64) -> U64:
    """Return where each value goes in the permutation of 0 … size-1 with its key.

    A Feistel network permutes the numbers below a power of four; numbers that fall outside are
    sent through it again until they are inside (cycle-walking; Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002). It takes no memory.

    Args:
        values: uint64 (n,), each below its size.
        sizes: uint64 (n,), 1 ≤ size < 2⁵³.
        keys: uint64 (n,), one a permutation.
    """
    bits = np.frexp((sizes - _ONE).astype(np.float64))[1]  # bit length of size - 1
    halves = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    round_keys = mix(keys + _STEPS)  # once: a value may pass the network several times
    result: U64 = values.copy()
    outside = np.flatnonzero(sizes > _ONE)
    while len(outside):
        result[outside] = _feistel(result[outside], halves[outside], round_keys[:, outside])
        outside = outside[result[outside] >= sizes[outside]]
    return result


def _feistel(values: U64, halves: U64, round_keys: U64) -> U64:
    mask = (_ONE << halves) - _ONE
    left, right = values >> halves, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (mix(right ^ round_key) & mask)
    joined: U64 = (left << halves) | right
    return joined


def shuffled(count: int, keys: U64) -> I64:
    """Return 0 … count-1 in an order for each key (K,), every one equally likely: (K, count).

    They are sorted by random numbers, so it takes memory, unlike :func:`permute`, whose orders of
    fewer than 20 are not quite equally likely.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return np.argsort(mix(keys[:, None] + steps), axis=1, kind="stable")


def key_of(*numbers: int | U64) -> U64:
    """Return the 64-bit key of a tuple of numbers, or of many tuples: an array of length ≥ 1."""
    key = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        value = np.asarray(number & _MASK if isinstance(number, int) else number, dtype=np.uint64)
        key = mix((key ^ value) + np.uint64(_GOLDEN))
    return key


def mix(values: U64) -> U64:
    """Scramble 64-bit numbers: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    mixed: U64 = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
