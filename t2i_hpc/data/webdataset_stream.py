"""The endless stream over tars that have no manifest yet, through webdataset's own pipeline.

What a manifest buys is what this stream cannot promise, and says so when it starts: there is no
list of samples, so there is no order that all ranks and restarts could agree on. It never ends
and never waits for a rank with fewer tars, since each loader process of each rank draws tars of
its own, with replacement.

webdataset draws tars at random, again and again, walks them, groups their members and shuffles
what comes out; only the opening is ours, since its own runs commands. Which members are a sample
is said in :mod:`t2i_hpc.data.sidecars`, for ``source=webdataset`` as well. Each tar is grouped by
itself, so that a sample never has members of two, and the last sample of a tar that breaks off is
left out. What cannot be used is counted and named, and too much of it ends the run.
"""

from __future__ import annotations

import io
import logging
import random
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from braceexpand import braceexpand

from t2i_hpc.common.errors import ConfigurationError, DataError, UserError
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import BatchMaker, BatchPlan
from t2i_hpc.data.captions import Vocabulary
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
from t2i_hpc.data.storage.fetching import BLOCK, Server, is_remote
from t2i_hpc.data.storage.retry import shown
from t2i_hpc.data.tar_reader import StoredSample

NOT_PROMISED = (
    "data.reader=webdataset draws tars at random, so these do not hold: an exact order of "
    "samples; every sample once an epoch; resuming at the very sample; the same batch for any "
    "number of ranks and workers. Shards made by t2i_hpc.shards source=webdataset have them all"
)
_TOLERATED = 10  # samples that may be left out in any case
_END = 512  # bytes of zeros with which a whole tar ends
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
        self._skipped, self._buffer = SkippedSamples(config.max_lost), PixelBuffer()
        self._rules = Rules(config.image_member, config.caption_member, config.caption_key)
        self._samples: Iterator[dict[str, Any]] | None = None
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
            self._samples = self._begin(position)
        for members in self._samples:
            name = f"{members['__key__']} in {shown(members['__url__'])}"
            try:
                stored, orientation = stored_sample(members, position, self._rules)
                image = decode(stored.image, name, self._buffer)
            except (DataError, UnfitSample) as error:
                self._skipped.add(name, str(error))
                continue
            image = turn(image, notes_of(stored.image).orientation or orientation)
            self._skipped.use()
            self._warn_of_upscaling(min(image.shape[:2]), name)
            return stored, resize_shorter(image, self.load_size)
        raise RuntimeError("the endless stream ended")

    def _begin(self, position: int) -> Iterator[dict[str, Any]]:
        self._warns_of_upscaling = position == self._start  # one process of all
        rng = generator(self.seed, "tars of a webdataset stream", position)
        return endless_samples(
            self._urls,
            int(rng.integers(1 << 62)),
            self._config.shuffle_buffer,
            retry_seconds=self._config.retry_seconds,
            skipped=self._skipped,
            rules=self._rules,
        )

    def _warn_of_upscaling(self, shorter: int, name: str) -> None:
        if self._warns_of_upscaling and shorter < self.resolution:
            self._warns_of_upscaling = False
            _LOG.warning(
                "%s has a shorter side of %d px, below the resolution of %d px: such images are "
                "scaled up",
                name,
                shorter,
                self.resolution,
            )


class SkippedSamples:
    """Counts what cannot be used, logs it, and ends the run when it is more than a few.

    Args:
        fraction: of all samples, which may be left out (data.max_lost).

    Attributes:
        place: the tar that is being read, for messages.
        found: samples that were found so far, good or not.
        tars: errors within tars so far, as opposed to samples that were found.
    """

    def __init__(self, fraction: float = 0.01) -> None:
        self.place = ""
        self.found = self.tars = self._used = self._count = 0
        self._fraction = fraction
        self._logged: set[str] = set()

    def use(self) -> None:
        """Count a good sample."""
        self._used += 1

    def __call__(self, error: Exception) -> bool:
        """Take an error of reading a tar; return True, webdataset's sign to continue.

        Raises:
            UserError: a server or file system does not answer, or too much is left out.
        """
        # webdataset adds to an error's arguments; the first is the error's own.
        said = str(error.args[0]).partition(" @ <")[0] if error.args else type(error).__name__
        if isinstance(error, UserError):
            raise type(error)(said) from error
        self.tars += 1
        self._add_error(error, said)
        return True

    def skip(self, error: Exception) -> bool:
        """Take an error in one member of a tar, after which its others can be read."""
        self._add_error(error, str(error.args[0]) if error.args else type(error).__name__)
        return True

    def _add_error(self, error: Exception, said: str) -> None:
        broken = isinstance(error, (tarfile.TarError, EOFError))
        self.add(self.place, f"it is damaged or breaks off: {said}" if broken else said)

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
        if self._count > max(_TOLERATED, self._fraction * (self._used + self._count)):
            raise DataError(
                f"{self._count} samples or tars of data.urls cannot be used, beside {self._used} "
                f"samples that can, which is more than data.max_lost={self._fraction:g}; the last "
                f"is {text}: make the tars again, leave it out, or allow more"
            )


def endless_samples(
    urls: Sequence[str],
    seed: int,
    buffer: int,
    *,
    retry_seconds: float,
    skipped: SkippedSamples,
    rules: Rules,
) -> Iterator[dict[str, Any]]:
    """Give samples without end, as webdataset shapes them: ``__key__``, ``__url__``, members.

    Args:
        urls: tars, drawn with replacement.
        seed: of the order of tars and samples.
        buffer: samples that are shuffled together.
        retry_seconds: for which a failing read is tried again.
        skipped: counts what cannot be used.
        rules: where image and captions of a sample are.
    """
    import webdataset
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def wanted(name: str) -> bool:
        return is_wanted(split_name(name)[1], rules)

    def meant(sample: dict[str, Any]) -> bool:
        return is_sample([name for name in sample if not name.startswith("__")], rules)

    def grouped() -> Iterator[dict[str, Any]]:
        for tar in _opened(tars, retry_seconds, skipped):
            errors, held = skipped.tars, None
            members = tar_file_expander([tar], handler=skipped, select_files=wanted)
            samples = group_by_keys(members, keys=split_name, handler=skipped.skip)
            for sample in filter(meant, samples):
                if held is not None:
                    yield held
                held = sample
            if skipped.tars == errors and held is not None:
                yield held

    tars = webdataset.ResampledShards(list(urls), deterministic=True, worker_seed=lambda: seed)
    shuffle = webdataset.shuffle(buffer, rng=random.Random(seed))
    shuffled: Iterator[dict[str, Any]] = iter(shuffle(_counted(grouped(), skipped)))
    return shuffled


def stored_sample(members: dict[str, Any], number: int, rules: Rules) -> tuple[StoredSample, int]:
    """Return a sample as the reader of indexed shards gives it, and its EXIF orientation.

    Args:
        members: by extension, and ``__key__``.
        number: its position in the stream, for its class where none is given: a number below
            zero, which is no class that anyone gave.
        rules: where its image and captions are.

    Raises:
        UnfitSample: no image, more than one, or no caption.
    """
    found = {name: content for name, content in members.items() if not name.startswith("__")}
    image = image_of(found, rules)
    given = described({name: found[name] for name in texts_of(found, rules)}, rules, found)
    form = IMAGE_FORMATS_OF_SUFFIX.get(f".{image.rpartition('.')[2]}", "jpeg")
    stored = StoredSample(
        key=given.key or str(members["__key__"]),
        image=found[image],
        image_format=form,
        captions=given.captions,
        class_id=given.class_id if given.class_id != NO_CLASS else -1 - number,
    )
    return stored, given.orientation


def _opened(
    tars: Iterable[dict[str, Any]], retry_seconds: float, skipped: SkippedSamples
) -> Iterator[dict[str, Any]]:
    """Add a stream to each tar; when it is through, report one that broke off or was empty."""
    server = Server(retry_seconds)
    for tar in tars:
        skipped.place, found, errors = tar["url"], skipped.found, skipped.tars
        with _open(tar["url"], server) as stream:
            tail = _Tail(stream)
            yield {**tar, "stream": tail}
        if skipped.tars > errors:
            continue
        if tar["url"].endswith(".tar") and any(tail.last):
            skipped(tarfile.ReadError("its end is missing"))
        elif skipped.found == found:  # of nothing but such tars the stream would never come back
            skipped(tarfile.ReadError("it holds no samples"))


def _counted(
    samples: Iterable[dict[str, Any]], skipped: SkippedSamples
) -> Iterator[dict[str, Any]]:
    for sample in samples:
        skipped.found += 1
        yield sample


def _open(url: str, server: Server) -> IO[bytes]:
    if is_remote(url, "data.urls"):
        return io.BufferedReader(RemoteFile(server, url), BLOCK)
    return server.retry.attempt(
        url, lambda _: Path(url).open("rb"), "see whether its file system answers"
    )


class RemoteFile(io.RawIOBase):
    """A file on a server, read from its beginning to its end."""

    def __init__(self, server: Server, address: str) -> None:
        self._server, self._address = server, address
        self._size = server.size(address)
        self._fetched, self._ahead = 0, memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, target: Any) -> int:
        """Fill the target as far as there are bytes; return their number, 0 at the end."""
        left = self._size - self._fetched
        if not self._ahead and left:
            content = self._server.read_on(self._address, self._fetched, min(BLOCK, left))
            self._ahead = memoryview(content)[:left]
            self._fetched += len(self._ahead)
        count = min(len(target), len(self._ahead))
        target[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        return count


class _Tail:
    """Passes reads on and remembers the last bytes, by which a tar shows that it is whole."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.last = stream, b""

    def read(self, count: int = -1) -> bytes:
        content = self._stream.read(count)
        self.last = content[-_END:] or self.last
        return content
