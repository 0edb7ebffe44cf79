"""The order of samples as a pure function of (seed, position).

The stream of samples is endless: position 0, 1, 2, … over all epochs without a seam. Each
epoch the shards are shuffled, consecutive shards form windows, and the samples of a window are
shuffled together: neighbours in time come from few shards, which the page cache of a node or a
slow network file system is grateful for, and yet neighbours of one epoch are not neighbours of
the next. A rank's batch is a slice of positions, so the order knows nothing of ranks, workers
or restarts; a run resumes from one integer, the number of samples seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from t2i_hpc.data.permutation import Words, key_of, permute

Numbers = npt.NDArray[np.int64]
_SHARDS, _SAMPLES = 1, 2  # what a key is for
_EPOCHS_KEPT = 2


@dataclass(frozen=True)
class _Epoch:
    """The shards of one epoch in their shuffled order.

    Attributes:
        shards: number of the shard at each place.
        starts: samples before each place; one more entry than places, the last is the total.
        windows: samples before each window of places; one more entry than windows.
    """

    shards: Numbers
    starts: Numbers
    windows: Numbers


class Plan:
    """Which sample stands at which position.

    Args:
        counts: samples of each shard, in the order of the index.
        seed: of the order.
        window: number of shards whose samples are shuffled together.
    """

    def __init__(self, counts: Sequence[int], seed: int, window: int) -> None:
        self._counts = np.asarray(counts, dtype=np.int64)
        self._first = _starts(self._counts)
        self._seed, self._window = seed, window
        self._epochs: dict[int, _Epoch] = {}
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

    def _indices_of_epoch(self, number: int, offsets: Numbers) -> Numbers:
        epoch = self._epoch(number)
        window = np.searchsorted(epoch.windows, offsets, side="right") - 1
        begin = epoch.windows[window]
        size = epoch.windows[window + 1] - begin
        keys = key_of(_SAMPLES, self._seed, number, window.astype(np.uint64))
        shuffled = begin + permute(_words(offsets - begin), _words(size), keys).astype(np.int64)
        place = np.searchsorted(epoch.starts, shuffled, side="right") - 1
        return self._first[epoch.shards[place]] + shuffled - epoch.starts[place]

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            while len(self._epochs) >= _EPOCHS_KEPT:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[number] = self._shuffle(number)
        return self._epochs[number]

    def _shuffle(self, number: int) -> _Epoch:
        total = len(self._counts)
        key = key_of(_SHARDS, self._seed, number)
        places = np.arange(total, dtype=np.uint64)
        shards = permute(places, np.full_like(places, total), np.repeat(key, total))
        order = shards.astype(np.int64)
        starts = _starts(self._counts[order])
        bounds = np.append(np.arange(0, total, self._window), total)
        return _Epoch(order, starts, starts[bounds])


def batch_positions(start: int, batch_size: int, rank: int, world: int) -> range:
    """Return the positions of a rank's part of the global batch that begins at `start`.

    Rank r takes the r-th of `world` contiguous slices, so the parts in rank order are the
    global batch. `batch_size` is that of the global batch, a multiple of `world`.
    """
    share = batch_size // world
    begin = start + rank * share
    return range(begin, begin + share)


def _starts(counts: Numbers) -> Numbers:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])


def _words(numbers: Numbers) -> Words:
    return numbers.astype(np.uint64)
