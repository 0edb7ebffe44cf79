"""The samples of a split, in the order of a plan.

The endless stream of batches that a rank trains on.

There is no loader state to save: which samples a batch is made of is computed from its number,
so a run goes on by asking for the batches from the number of samples seen on.

What a run trains on, whichever way its data is read.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.files import sha256_of_json
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import DRAWS, Arrays, Batch, BatchMaker, Planned, Texts
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.cropping import find_crop_decoder
from t2i_hpc.data.images import Pixels, Scratch, decode, resize_shorter, window
from t2i_hpc.data.loader import Loader, Positions
from t2i_hpc.data.permutation import uniform
from t2i_hpc.data.reader import StoredSample
from t2i_hpc.data.sampler import RankSlice, Sampler
from t2i_hpc.data.split import Split, open_vocabulary
from t2i_hpc.data.storage.urls import shown
from t2i_hpc.data.webdataset_stream import NOT_PROMISED, WebDatasetStream, expand

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
        self, split: Split, plan: Sampler, config: DataConfig, resolution: int, seed: int
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
        share: RankSlice,
        *,
        answer_within: float = 600.0,
    ) -> None:
        if share.rank == 0:
            _warn_of_upscaling(split, round(resolution * config.resize_ratio))
        manifest = split.manifest
        plan = Sampler(manifest.counts, seed, config.shuffle_window, order=manifest.order)
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
            "crops are taken from (the resolution times data.resize_ratio): the smaller ones are "
            "scaled up; build the shards with size=%d if the originals are larger",
            split.manifest.location or split.manifest.folder,
            smallest,
            wanted,
            wanted,
        )


@dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes:
        identity: SHA-256 of all that decides tokens and pixels but for the settings of a run:
            what holds the samples, and the vocabulary that numbers their words.
        content: SHA-256 of what holds the samples alone.
        summary: how much of it there is, for people.
        samples: how many samples an epoch has; None: nobody knows.
        vocabulary: of its captions.
        notice: what does not hold that usually does, for people; usually empty.
        stream: is given resolution, seed and the share of a rank; returns a stream.
    """

    identity: str
    content: str
    summary: str
    samples: int | None
    vocabulary: Vocabulary
    notice: str
    stream: Callable[..., Any]

    def loader(
        self, resolution: int, seed: int, share: RankSlice, answer_within: float = 600.0
    ) -> Loader:
        """Return what makes a rank's batches from a number of samples seen on.

        Args:
            resolution: side of the images in pixels.
            seed: of order, captions and crops.
            share: this rank's part of each global batch.
            answer_within: seconds without a batch after which a loader process counts as stuck.

        Raises:
            UserError: whatever is wrong with the data or its values.
        """
        stream = self.stream(
            resolution=resolution, seed=seed, share=share, answer_within=answer_within
        )
        loader: Loader = stream.loader
        return loader

    def epoch(self, setting: str) -> int:
        """Return the number of samples of an epoch.

        Raises:
            ConfigurationError: nobody knows it; names the setting that can give it.
        """
        if self.samples is None:
            raise ConfigurationError(
                "data.reader=webdataset does not know how many samples its tars hold: give "
                f"{setting}="
            )
        return self.samples


def fit_to_timeout(config: DataConfig, timeout: float, ranks: int) -> tuple[DataConfig, float]:
    """Return settings and a deadline with which a rank names its trouble before others give it up.

    Args:
        config: of the data.
        timeout: seconds that other ranks wait for this one (``engine.timeout``).
        ranks: how many there are; one alone may wait for as long as it likes.

    Returns:
        The settings, whose patience is half of the timeout at most, and the seconds without a
        batch after which a loader process counts as stuck: between patience and timeout.
    """
    if ranks == 1:
        return config, config.retry_seconds + timeout
    patience = min(config.retry_seconds, timeout / 2)
    return replace(config, retry_seconds=patience), (patience + timeout) / 2


def open_training_data(config: DataConfig, check_tars: bool = True) -> TrainingData:
    """Open what ``data.reader`` and the rest of a configuration name.

    Args:
        config: of the data.
        check_tars: look whether the tars are there; one rank is enough for all.

    Raises:
        UserError: it is not there, damaged, or contradictory.
    """
    return _READERS[config.reader](config, check_tars)


def _open_indexed(config: DataConfig, check_tars: bool) -> TrainingData:
    if config.urls:
        raise ConfigurationError(
            "data.urls= belongs to data.reader=webdataset: set that, or name a folder of shards "
            "with data.path= alone"
        )
    split = Split.open(config, config.train_split, check_tars)
    return TrainingData(
        identity=sha256_of_json(
            {"manifest": split.manifest.digest, "vocabulary": split.vocabulary.sha256}
        ),
        content=split.manifest.digest,
        summary=f"{split.count:,} samples of {config.name}",
        samples=split.count,
        vocabulary=split.vocabulary,
        notice="",
        stream=partial(Stream, config, split),
    )


def _open_webdataset(config: DataConfig, _: bool) -> TrainingData:
    urls, vocabulary = expand(config.urls), open_vocabulary(config)
    names = [shown(url) for url in urls]
    members = [config.image_member, config.caption_member, config.caption_key]
    chosen = {"members": members} if any(members) else {}
    return TrainingData(
        identity=sha256_of_json({"urls": names, "vocabulary": vocabulary.sha256} | chosen),
        content=sha256_of_json({"urls": names} | chosen),
        summary=f"{len(urls):,} tars of {config.name}",
        samples=None,
        vocabulary=vocabulary,
        notice=NOT_PROMISED,
        stream=partial(WebDatasetStream, config, vocabulary),
    )


_READERS = {"indexed": _open_indexed, "webdataset": _open_webdataset}
