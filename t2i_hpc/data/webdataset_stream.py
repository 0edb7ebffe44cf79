"""The endless stream over tars that have no manifest yet, drawn at random.

What a manifest buys is what this stream cannot promise, and says so when it starts: there is no
list of samples, so there is no order that all ranks and restarts could agree on. It never ends
and never waits for a rank with fewer tars, since each loader process of each rank draws tars of
its own, with replacement, walks them from front to back and shuffles what comes.

Which members are a sample is said in :mod:`t2i_hpc.data.sidecars`, for ``source=webdataset`` as
well. A sample never has members of two tars, and the last sample of a tar that breaks off is left
out. What cannot be used is counted and named, and too much of it ends the run.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import BatchMaker, BatchPlan
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.tar_stream import UnansweredError, open_tar
from t2i_hpc.data.format.tars import LARGEST_IMAGE, Scan, members_in_order
from t2i_hpc.data.images import (
    IMAGE_FORMATS_OF_SUFFIX,
    PixelBuffer,
    Pixels,
    decode,
    notes_of,
    resize_shorter,
    turn,
    window,
)
from t2i_hpc.data.loader import Loader
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.sidecars import (
    NO_CLASS,
    Rules,
    UnfitSample,
    described,
    image_of,
    is_sample,
    is_wanted,
    split_name,
    texts_of,
)
from t2i_hpc.data.storage.fetching import Server, is_remote
from t2i_hpc.data.storage.retry import shown
from t2i_hpc.data.tar_reader import StoredSample

NOT_PROMISED = (
    "data.reader=webdataset draws tars at random, so these do not hold: an exact order of "
    "samples; every sample once an epoch; resuming at the very sample; the same batch for any "
    "number of ranks and workers. Shards made by t2i_hpc.shards source=webdataset have them all"
)
_TOLERATED = 10  # samples that may be left out in any case
_BEGIN = 100  # samples that are shuffled together at first, so that it does not wait for all
_LOG = logging.getLogger(__name__)


def webdataset_loader(
    config: DataConfig,
    vocabulary: Vocabulary,
    resolution: int,
    seed: int,
    rank_slice: RankSlice,
    *,
    answer_within: float = 600.0,
) -> Loader:
    """Return what makes a rank's batches of the tars in ``config.urls``; see OpenLoader.

    The samples at the positions depend on where the batches start and on the numbers of ranks and
    workers.

    Raises:
        ConfigurationError: no tars are named.
        DataError: a tar in a folder is not there, or an address is not offered.
    """
    urls = expand(config.urls)

    def make(start: int) -> BatchMaker:
        return _DrawnBatches(urls, vocabulary, config, resolution, seed, start=start)

    return Loader(make, rank_slice, config.workers, answer_within)


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the tars that brace patterns name, such as ``s3://bucket/{000..127}.tar``.

    Raises:
        ConfigurationError: nothing is named, or braces do not match.
        DataError: a tar in a folder is not there, or an address is not offered.
    """
    if not any(patterns):
        raise ConfigurationError(
            "data.reader=webdataset needs data.urls=…, the tars to read: paths or addresses, "
            "with {000..127} for many"
        )
    try:
        urls = [url for pattern in patterns for url in braceexpand(pattern)]
    except ValueError as error:
        raise ConfigurationError(f"data.urls: {error}") from error
    here = [url for url in urls if not is_remote(url, "data.urls")]
    missing = [url for url in here if not Path(url).is_file()]
    if missing:
        raise DataError(
            f"data.urls names {missing[0]}, which is not there ({len(missing):,} of {len(urls):,} "
            "tars are missing): correct the pattern"
        )
    return urls


class _DrawnBatches(BatchMaker):
    """Makes batches of samples as they come.

    Each process that fills batches draws tars of its own, by the first position it is given.
    """

    def __init__(
        self,
        urls: Sequence[str],
        vocabulary: Vocabulary,
        config: DataConfig,
        resolution: int,
        seed: int,
        *,
        start: int,
    ) -> None:
        super().__init__(vocabulary, config, resolution, seed)
        self._urls, self._config, self._start = urls, config, start
        self._skipped, self._buffer = _Skipped(config.max_lost), PixelBuffer()
        self._rules = Rules(config.image_member, config.caption_member, config.caption_key)
        self._samples: Iterator[_Sample] | None = None
        self._warns_of_upscaling = False

    def plan(self, batches: Iterable[Sequence[int]]) -> Iterator[BatchPlan]:
        """Say what is known of batches beforehand: the draws, not the samples."""
        for positions in batches:
            yield BatchPlan(positions, (), self.draws(positions))

    def _sample(self, plan: BatchPlan, row: int) -> tuple[StoredSample, Pixels]:
        drawn = plan.draws[row]
        stored, image = self._next(plan.positions[row])
        return stored, window(image, self.resolution, drawn.down, drawn.across)

    def _next(self, position: int) -> tuple[StoredSample, Pixels]:
        """Return the next sample that can be used and its image, scaled for the crop."""
        if self._samples is None:
            self._warns_of_upscaling = position == self._start  # one process of all
            rng = generator(self.seed, "tars of a webdataset stream", position)
            drawn = random.Random(int(rng.integers(1 << 62)))
            self._samples = _shuffled(self._drawn(drawn), drawn, self._config.shuffle_buffer)
        for sample in self._samples:
            name = f"{sample.key} in {shown(sample.url)}"
            try:
                stored, orientation = _stored(sample, position, self._rules)
                image = decode(stored.image, name, self._buffer)
            except (DataError, UnfitSample) as error:
                self._skipped.add(name, str(error))
                continue
            self._skipped.used += 1
            image = turn(image, notes_of(stored.image).orientation or orientation)
            if self._warns_of_upscaling and min(image.shape[:2]) < self.resolution:
                self._warns_of_upscaling = False
                _LOG.warning(
                    "%s has a shorter side of %d px, below the resolution of %d px: such images "
                    "are scaled up",
                    *(name, min(image.shape[:2]), self.resolution),
                )
            return stored, resize_shorter(image, self.load_size)
        raise RuntimeError("the endless stream ended")

    def _drawn(self, drawn: random.Random) -> Iterator[_Sample]:
        """Give the samples of tars that are drawn with replacement."""
        server = Server(self._config.retry_seconds)
        while True:
            try:
                yield from _samples_of(drawn.choice(self._urls), server, self._rules, self._skipped)
            except UnansweredError as error:
                raise DataError(str(error)) from error


class _Skipped:
    """Counts what cannot be used, logs it, and ends the run when it is more than a few.

    Args:
        fraction: of all samples, which may be left out (data.max_lost).

    Attributes:
        used: good samples so far.
    """

    def __init__(self, fraction: float) -> None:
        self.used = self._count = 0
        self._fraction = fraction
        self._logged: set[str] = set()

    def add(self, name: str, reason: str) -> None:
        """Count what cannot be used.

        Raises:
            DataError: there were more than 10 losses and the fraction that is allowed.
        """
        self._count += 1
        text = f"{shown(name)} ({' '.join(reason.split())})"
        if name not in self._logged:
            _LOG.warning("left out: %s", text)
            self._logged.add(name)
        if self._count > max(_TOLERATED, self._fraction * (self.used + self._count)):
            raise DataError(
                f"{self._count} samples or tars of data.urls cannot be used, beside {self.used} "
                f"samples that can, which is more than data.max_lost={self._fraction:g}; the last "
                f"is {text}: make the tars again, leave it out, or allow more"
            )


class _Sample(NamedTuple):
    """A sample as it stands in a tar: its key, the tar, its members by extension."""

    key: str
    url: str
    members: dict[str, bytes]


def _samples_of(url: str, server: Server, rules: Rules, skipped: _Skipped) -> Iterator[_Sample]:
    """Give the samples of a tar; members of one sample follow each other.

    Raises:
        UnansweredError: the tar cannot be read.
    """
    found, sample, count = Scan(), _Sample("", url, {}), 0
    with open_tar(url, server) as tar:
        for member in members_in_order(tar, found):
            key, extension = split_name(member.name)
            if not is_wanted(extension, rules):
                continue
            if key != sample.key:
                if is_sample(sample.members, rules):
                    count += 1
                    yield sample
                sample = _Sample(key, url, {})
            if extension in sample.members or member.size > LARGEST_IMAGE:
                skipped.add(f"{member.name} in {url}", "it is there twice, or too large")
            else:
                sample.members[extension] = tar.read(member.offset_data, member.size)
    if found.problem or not found.ended:
        skipped.add(url, f"it is damaged or breaks off: {found.problem or 'its end is missing'}")
    if is_sample(sample.members, rules) and not found.problem:
        yield sample
    elif not count and not found.problem:
        skipped.add(url, "it holds no samples")  # of nothing but such tars none would ever come


def _shuffled(samples: Iterator[_Sample], drawn: random.Random, buffer: int) -> Iterator[_Sample]:
    """Shuffle as webdataset does: give one of a buffer, which grows while it is given from."""
    held = list[_Sample]()
    for number, sample in enumerate(samples):
        held.append(sample)
        if len(held) >= buffer or (len(held) >= _BEGIN and number % 2):
            place = drawn.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()


def _stored(sample: _Sample, number: int, rules: Rules) -> tuple[StoredSample, int]:
    """Return a sample as the reader of indexed shards gives it, and its EXIF orientation.

    Args:
        sample: as it stands in its tar.
        number: its position in the stream, for its class where none is given: a number below
            zero, which is no class that anyone gave.
        rules: where its image and captions are.

    Raises:
        UnfitSample: no image, more than one, or no caption.
    """
    found = sample.members
    image = image_of(found, rules)
    given = described({name: found[name] for name in texts_of(found, rules)}, rules, found)
    stored = StoredSample(
        key=given.key or sample.key,
        image=found[image],
        image_format=IMAGE_FORMATS_OF_SUFFIX.get(f".{image.rpartition('.')[2]}", "jpeg"),
        captions=given.captions,
        class_id=given.class_id if given.class_id != NO_CLASS else -1 - number,
    )
    return stored, given.orientation
