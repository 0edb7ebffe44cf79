"""The samples of a split, in the order of a plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.arrays import Arrays, Texts
from t2i_hpc.data.batch_maker import DRAWS, BatchMaker, Planned
from t2i_hpc.data.cropping import find_crop_decoder
from t2i_hpc.data.draws import uniform
from t2i_hpc.data.images import Pixels, Scratch, decode, resize_shorter, window
from t2i_hpc.data.plan import Plan
from t2i_hpc.data.reader import StoredSample
from t2i_hpc.data.split import Split

_PLANNED = 16  # batches at once: planning one takes as long as planning many


class Samples(BatchMaker):
    """Makes batches of the samples that a plan puts at their positions.

    Args:
        split: where the samples are read.
        plan: which sample stands at which position.
        config: words, margin and flip.
        resolution: side of the images in pixels.
        seed: of captions and crops.
    """

    def __init__(
        self, split: Split, plan: Plan, config: DataConfig, resolution: int, seed: int
    ) -> None:
        super().__init__(split.vocabulary, config, resolution, seed)
        self._split, self._plan = split, plan
        self._scratch, self._crops = Scratch(), find_crop_decoder()

    def plan(self, batches: Iterable[Sequence[int]]) -> Iterator[Planned]:
        """Say what each of some batches, given by positions, is made of."""
        remaining = iter(batches)
        while ahead := list(itertools.islice(remaining, _PLANNED)):
            positions = [position for batch in ahead for position in batch]
            indices = self._plan.indices(positions).tolist()
            draws = uniform(self.seed, positions, DRAWS).tolist()
            end = 0
            for batch in ahead:
                begin, end = end, end + len(batch)
                yield Planned(batch, indices[begin:end], draws[begin:end])

    def fill(self, planned: Planned, arrays: Arrays) -> Texts:
        """Make a batch, into arrays of its size; all its reads share the patience of one.

        Raises:
            DataError: a sample cannot be read or decoded.
        """
        with self._split.patience_for_a_batch():
            return super().fill(planned, arrays)

    def _sample(self, planned: Planned, row: int) -> tuple[StoredSample, Pixels]:
        index, (_, down, across, _) = planned.indices[row], planned.draws[row]
        stored = self._split.sample(index)
        if self._crops is not None and stored.image_format == "jpeg":
            where = self.load_size, self.resolution, down, across
            cut = self._crops.decode(stored.image, *where)
            if cut is not None:
                return stored, cut
        image = resize_shorter(self._whole(index, stored), self.load_size)
        return stored, window(image, self.resolution, down, across)

    def _whole(self, index: int, stored: StoredSample) -> Pixels:
        try:
            return decode(stored.image, stored.key, self._scratch)
        except DataError:
            return self._split.decode(index, stored)  # fails again, and names the shard
