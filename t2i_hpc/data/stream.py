"""The endless stream of batches that a rank trains on.

There is no loader state to save: which samples a batch is made of is computed from its number,
so a run goes on by asking for the batches from the number of samples seen on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from t2i_hpc.common.step import Batch
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batch_maker import BatchMaker
from t2i_hpc.data.loader import Loader, Positions
from t2i_hpc.data.plan import Plan
from t2i_hpc.data.samples import Samples
from t2i_hpc.data.share import Share
from t2i_hpc.data.split import Split


class Stream:
    """One rank's part of the global batches.

    Args:
        config: how samples are made (words, margin, flip, shuffle_window, workers).
        split: the split to train on.
        resolution: side of the images in pixels.
        seed: of order, captions and crops.
        share: this rank's part of each global batch.
        answer_within: seconds without a batch after which a loader process counts as stuck.
    """

    def __init__(
        self,
        config: DataConfig,
        split: Split,
        resolution: int,
        seed: int,
        share: Share,
        *,
        answer_within: float = 600.0,
    ) -> None:
        if share.rank == 0:
            _warn_of_upscaling(split, round(resolution * config.margin))
        manifest = split.manifest
        plan = Plan(manifest.counts, seed, config.shuffle_window, order=manifest.order)
        self._samples = Samples(split, plan, config, resolution, seed)
        self._share = share
        self.loader = Loader(self._begin, config.workers, answer_within)

    def batches(self, start: int) -> Iterator[Batch]:
        """Return batches without end, the first of which begins at sample `start` ≥ 0.

        Closing the iterator ends its workers.

        Raises:
            DataError: a sample cannot be read or decoded.
            RunError: a loader process died or does not answer.
        """
        return self.loader.batches(start)

    def _begin(self, start: int) -> tuple[BatchMaker, Positions]:
        return self._samples, self._share.positions(start)


def _warn_of_upscaling(split: Split, wanted: int) -> None:
    smallest = split.manifest.smallest
    if smallest < wanted:
        logging.getLogger(__name__).warning(
            "images of %s are stored with shorter sides from %d px on, below the %d px that "
            "crops are taken from (the resolution times data.margin): the smaller ones are scaled "
            "up; build the shards with size=%d if the originals are larger",
            split.manifest.location or split.manifest.folder,
            smallest,
            wanted,
            wanted,
        )
