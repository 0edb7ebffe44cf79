"""The endless stream of batches that a rank trains on.

The stream is a computed plan over torch's DataLoader: the loader is given lists of positions
and only decides which process makes them. There is no loader state to save: a run goes on by
asking for the batches from the number of samples seen on.
"""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.step import Batch
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.plan import Plan, batch_positions
from t2i_hpc.data.samples import Failure, Samples
from t2i_hpc.data.split import Split


class Stream:
    """One rank's part of the global batches.

    Args:
        config: how samples are made (words, margin, flip, shuffle_window, workers).
        split: the split to train on.
        resolution: side of the images in pixels.
        seed: of order, captions and crops.
        batch_size: samples of a global batch, over all ranks.
        rank, world: which of how many equal parts of each global batch.

    Raises:
        ConfigurationError: the batch cannot be divided by the number of ranks.
    """

    def __init__(
        self,
        config: DataConfig,
        split: Split,
        resolution: int,
        seed: int,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise ConfigurationError(
                f"engine.batch_size={batch_size} cannot be divided by {world} ranks: take a "
                f"multiple of {world}, e.g. {world * max(1, round(batch_size / world))}"
            )
        if rank == 0:
            _warn_of_upscaling(split, resolution)
        plan = Plan(split.manifest.counts, seed, config.shuffle_window)
        self._samples = Samples(split, plan, config, resolution, seed)
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._workers = config.workers

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield batches without end, the first of which begins at sample `start` ≥ 0.

        Closing the iterator ends its workers.

        Raises:
            DataError: a sample cannot be read or decoded.
        """
        made = iter(self._loader(start))
        try:
            for fields in made:
                if isinstance(fields, Failure):
                    raise fields.error
                yield Batch(**fields)
        finally:
            del made  # its end is the workers' end

    def _loader(self, start: int) -> Iterable[dict[str, Any] | Failure]:
        positions = (
            list(batch_positions(begin, self._batch_size, self._rank, self._world))
            for begin in itertools.count(start, self._batch_size)
        )
        return DataLoader(
            self._samples,
            batch_sampler=positions,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_signals,
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(0),  # leaves torch's own generator alone
        )


def _as_it_is(made: list[Any]) -> list[Any]:
    """Collate nothing: the samples of a batch are stacked where they are made."""
    return made


def _ignore_signals(_: int) -> None:
    """Leave stop signals to the main process.

    Slurm signals every process of a job; a loader that died of it would take the run down
    before its checkpoint is written. Workers end with the iterator or with their parent.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _warn_of_upscaling(split: Split, resolution: int) -> None:
    smallest = split.manifest.smallest
    if smallest < resolution:
        logging.getLogger(__name__).warning(
            "images of %s are stored with shorter sides from %d px on, below the resolution of "
            "%d px: the smaller ones are scaled up",
            split.manifest.folder,
            smallest,
            resolution,
        )
