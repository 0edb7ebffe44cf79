"""What a run trains on, and the batches made of it, whichever way its data is read."""

from __future__ import annotations

import itertools
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Protocol

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.files import sha256_of_json
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Arrays, BatchMaker, BatchPlan, Texts
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.cropping import find_crop_decoder
from t2i_hpc.data.images import PixelBuffer, Pixels, decode, resize_shorter, window
from t2i_hpc.data.loader import Loader, OpenLoader
from t2i_hpc.data.mixture import MixedSplits, MixtureOrder, check_one_vocabulary, shares_of
from t2i_hpc.data.sampler import I64, RankSlice, Sampler
from t2i_hpc.data.split import Split, open_cache, open_vocabulary
from t2i_hpc.data.storage.local_shards import Reads
from t2i_hpc.data.storage.object_stores import use_access
from t2i_hpc.data.storage.prefetch import Lookahead, Order
from t2i_hpc.data.storage.retry import shown
from t2i_hpc.data.tar_reader import StoredSample
from t2i_hpc.data.webdataset_stream import NOT_PROMISED, expand, webdataset_loader

_PLANNED = 16  # batches at once: planning one takes as long as planning many


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
        loader: opens what makes a rank's batches.
    """

    identity: str
    content: str
    summary: str
    samples: int | None
    vocabulary: Vocabulary
    notice: str
    loader: OpenLoader

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


def open_training_data(config: DataConfig, check_tars: bool = True) -> TrainingData:
    """Open what ``data.reader`` and the rest of a configuration name.

    Args:
        config: of the data.
        check_tars: look whether the tars are there; one rank is enough for all.

    Raises:
        UserError: it is not there, damaged, or contradictory.
    """
    use_access(config)
    return _READERS[config.reader](config, check_tars)


def _open_indexed(config: DataConfig, check_tars: bool) -> TrainingData:
    if config.urls:
        raise ConfigurationError(
            "data.urls= belongs to data.reader=webdataset: set that, or name a folder of shards "
            "with data.path= alone"
        )
    if config.weights and not config.paths:
        raise ConfigurationError(
            "data.weights= belongs to data.paths=, which names the data sets to mix"
        )
    if config.paths:
        return _open_mixture(config, check_tars)
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
        loader=partial(indexed_loader, config, split),
    )


def _open_mixture(config: DataConfig, check_tars: bool) -> TrainingData:
    each = [replace(config, path=path, paths=[], weights=[]) for path in config.paths]
    splits = [Split.open(one, one.train_split, check_tars) for one in each]
    check_one_vocabulary(config.paths, splits)
    counts = [split.count for split in splits]
    shares = shares_of(config.weights, counts)
    parts = [
        f"{float(share):.1%} {path} ({count:,})"
        for share, path, count in zip(shares, config.paths, counts, strict=True)
    ]
    content = sha256_of_json(
        [[split.manifest.digest, str(share)] for split, share in zip(splits, shares, strict=True)]
    )
    vocabulary = splits[0].vocabulary
    return TrainingData(
        identity=sha256_of_json({"mixture": content, "vocabulary": vocabulary.sha256}),
        content=content,
        summary=f"{sum(counts):,} samples of {len(splits)} data sets: {', '.join(parts)}",
        samples=sum(counts),
        vocabulary=vocabulary,
        notice="",
        loader=partial(mixture_loader, config, list(zip(splits, shares, strict=True))),
    )


def _open_webdataset(config: DataConfig, _: bool) -> TrainingData:
    if config.paths:
        raise ConfigurationError(
            "data.paths= mixes data sets with a manifest: leave out data.reader=webdataset, or "
            "name the tars of all of them in data.urls="
        )
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
        loader=partial(webdataset_loader, config, vocabulary),
    )


def fit_to_timeout(config: DataConfig, timeout: float, ranks: int) -> tuple[DataConfig, float]:
    """Return settings and a deadline with which a rank reports its error before others time out.

    Args:
        config: of the data.
        timeout: seconds that other ranks wait for this one (``engine.timeout``).
        ranks: how many there are; a single one may wait for as long as it likes.

    Returns:
        The settings, whose retry_seconds are half of the timeout at most, and the seconds without
        a batch after which a loader process counts as stuck: between these two.
    """
    if ranks == 1:
        return config, config.retry_seconds + timeout
    retry_seconds = min(config.retry_seconds, timeout / 2)
    return replace(config, retry_seconds=retry_seconds), (retry_seconds + timeout) / 2


class SampleOrder(Protocol):
    """Which sample is at which position: of one data set or of several."""

    def samples(self, positions: Sequence[int]) -> I64:
        """Return the sample at each position, int64 (len(positions),)."""


class Samples(Protocol):
    """Samples by number: of one split or of several."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Of their captions."""

    def sample(self, sample: int) -> StoredSample:
        """Read a sample."""

    def decode(self, sample: int, stored: StoredSample) -> Pixels:
        """Decode the image of a sample that was read already."""

    def retries_shared(self) -> AbstractContextManager[None]:
        """Let the reads of a block share ``data.retry_seconds``."""

    @property
    def reads(self) -> Reads:
        """What was read so far."""


class IndexedBatches(BatchMaker):
    """Makes batches of the samples that a sampler puts at their positions.

    Args:
        split: where the samples are read.
        sampler: which sample is at which position.
        config: max_tokens, resize_ratio and flip.
        resolution: side of the images in pixels.
        seed: of captions and crops.
    """

    def __init__(
        self, split: Samples, sampler: SampleOrder, config: DataConfig, resolution: int, seed: int
    ) -> None:
        super().__init__(split.vocabulary, config, resolution, seed)
        self._split, self._sampler = split, sampler
        self._buffer, self._crops = PixelBuffer(), find_crop_decoder()

    def plan(self, batches: Iterable[Sequence[int]]) -> Iterator[BatchPlan]:
        """Say what each of some batches, given by positions, is made of."""
        remaining = iter(batches)
        while ahead := list(itertools.islice(remaining, _PLANNED)):
            positions = [position for batch in ahead for position in batch]
            samples = self._sampler.samples(positions).tolist()
            draws = self.draws(positions)
            end = 0
            for batch in ahead:
                begin, end = end, end + len(batch)
                yield BatchPlan(batch, samples[begin:end], draws[begin:end])

    def reads(self) -> tuple[int, int, int]:
        """Return samples whose shard was here, those that had to wait for it, and bytes fetched."""
        counts = self._split.reads
        return counts.found, counts.missed, counts.bytes

    def fill(self, plan: BatchPlan, arrays: Arrays) -> Texts:
        """Make a batch, into arrays of its size; its reads share ``data.retry_seconds``.

        Raises:
            DataError: a sample cannot be read or decoded.
        """
        with self._split.retries_shared():
            return super().fill(plan, arrays)

    def _sample(self, plan: BatchPlan, row: int) -> tuple[StoredSample, Pixels]:
        sample, drawn = plan.samples[row], plan.draws[row]
        stored = self._split.sample(sample)
        if self._crops is not None and stored.image_format == "jpeg" and not stored.noted:
            where = self.load_size, self.resolution, drawn.down, drawn.across
            cut = self._crops.decode(stored.image, *where)
            if cut is not None:
                return stored, cut
        image = resize_shorter(self._whole(sample, stored), self.load_size)
        return stored, window(image, self.resolution, drawn.down, drawn.across)

    def _whole(self, sample: int, stored: StoredSample) -> Pixels:
        try:
            return stored.upright(decode(stored.image, stored.key, self._buffer))
        except DataError:
            return self._split.decode(sample, stored)  # fails again, and names the shard


def indexed_loader(
    config: DataConfig,
    split: Split,
    resolution: int,
    seed: int,
    rank_slice: RankSlice,
    *,
    answer_within: float = 600.0,
) -> Loader:
    """Return what makes a rank's batches of a split; see :class:`OpenLoader`."""
    if rank_slice.rank == 0:
        _warn_of_upscaling(split, round(resolution * config.resize_ratio))
    manifest = split.manifest
    sampler = Sampler(manifest.counts, seed, config.shuffle_window, order=manifest.order)
    batches = IndexedBatches(split, sampler, config, resolution, seed)
    ahead = look_ahead(config, [split], sampler, seed, rank_slice)
    return Loader(lambda _: batches, rank_slice, config.workers, answer_within, ahead)


def mixture_loader(
    config: DataConfig,
    parts: Sequence[tuple[Split, Fraction]],
    resolution: int,
    seed: int,
    rank_slice: RankSlice,
    *,
    answer_within: float = 600.0,
) -> Loader:
    """Return what makes a rank's batches of several splits; see :class:`OpenLoader`."""
    splits, shares = zip(*parts, strict=True)
    samplers = []
    for split in splits:
        if rank_slice.rank == 0:
            _warn_of_upscaling(split, round(resolution * config.resize_ratio))
        counts, order = split.manifest.counts, split.manifest.order
        samplers.append(Sampler(counts, seed, config.shuffle_window, order=order))
    mixed = MixtureOrder(samplers, shares, seed)
    batches = IndexedBatches(MixedSplits(splits), mixed, config, resolution, seed)
    ahead = look_ahead(config, splits, mixed, seed, rank_slice)
    return Loader(lambda _: batches, rank_slice, config.workers, answer_within, ahead)


def look_ahead(
    config: DataConfig, splits: Sequence[Split], order: Order, seed: int, rank_slice: RankSlice
) -> Lookahead | None:
    """Return what a rank's prefetcher is told; None where nothing is to be prefetched."""
    storages = [split.storage for split in splits]
    if not config.prefetch or not any(storage.looks_ahead for storage in storages):
        return None
    # Ranks of one job on a node have one parent, and read the same; other jobs are elsewhere.
    job = os.getppid() if rank_slice.world > 1 else os.getpid()
    names = [os.environ.get(name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_PORT")]
    digests = [split.manifest.digest for split in splits]
    key = sha256_of_json([socket.gethostname(), job, names, digests, seed, config.shuffle_window])
    return Lookahead(order, storages, open_cache(config), key[:32], config.prefetch)


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


_READERS = {"indexed": _open_indexed, "webdataset": _open_webdataset}
