"""Samples of tars without a manifest, through webdataset's own pipeline.

webdataset draws tars at random, again and again, walks them, groups their members and shuffles
what comes out; only the opening is ours, since its own runs commands. Where a tar lies does not
matter: a folder, a web server, a bucket.

Which members are a sample, and where its captions stand, is said in
:mod:`t2i_hpc.data.build.sources.webdataset_tars`, for ``source=webdataset`` as well. Each tar is
grouped by itself, so that a sample never has members of two, and the last sample of a tar that
breaks off is left out. What cannot be used is counted and named, and too much of it ends the run.
"""

from __future__ import annotations

import io
import logging
import random
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from t2i_hpc.common.errors import DataError, UserError
from t2i_hpc.data.build.sources.sample import IMAGE_FORMATS_OF_SUFFIX, NO_CLASS
from t2i_hpc.data.build.sources.webdataset_tars import (
    Rules,
    described,
    image_of,
    is_sample,
    is_wanted,
    split_name,
    texts_of,
)
from t2i_hpc.data.reader import StoredSample
from t2i_hpc.data.storage.retry import RetryPolicy
from t2i_hpc.data.storage.server import BLOCK, Server
from t2i_hpc.data.storage.urls import is_remote, shown

_TOLERATED = 10  # samples that may be lost in any case
_END = 512  # bytes of zeros with which a whole tar ends


class Losses:
    """Counts what cannot be used, says so, and ends the run when it is more than a few.

    Args:
        fraction: of all samples, which may be lost (data.max_lost).

    Attributes:
        place: the tar that is being read, for messages.
        found: samples that were found so far, good or not.
        tars: losses within tars so far, as opposed to samples that were found.
    """

    def __init__(self, fraction: float = 0.01) -> None:
        self.place = ""
        self.found = self.tars = self._used = self._lost = 0
        self._fraction = fraction
        self._told: set[str] = set()

    def use(self) -> None:
        """Count a good sample."""
        self._used += 1

    def __call__(self, error: Exception) -> bool:
        """Take an error of reading a tar; return True, webdataset's sign for going on.

        Raises:
            UserError: a server or file system does not answer, or too much is lost.
        """
        # webdataset adds to an error's arguments; the first is the error's own.
        said = str(error.args[0]).partition(" @ <")[0] if error.args else type(error).__name__
        if isinstance(error, UserError):
            raise type(error)(said) from error
        self.tars += 1
        self._tell(error, said)
        return True

    def skip(self, error: Exception) -> bool:
        """Take an error in one member of a tar, after which its others can be read."""
        self._tell(error, str(error.args[0]) if error.args else type(error).__name__)
        return True

    def _tell(self, error: Exception, said: str) -> None:
        broken = isinstance(error, (tarfile.TarError, EOFError))
        self.lose(self.place, f"it is damaged or breaks off: {said}" if broken else said)

    def lose(self, name: str, reason: str) -> None:
        """Count a loss.

        Raises:
            DataError: there were more than 10 losses and the fraction that is allowed.
        """
        self._lost += 1
        text = f"{shown(name)} ({' '.join(reason.split())})"
        if name not in self._told:
            logging.getLogger(__name__).warning("left out: %s", text)
            self._told.add(name)
        if self._lost > max(_TOLERATED, self._fraction * (self._used + self._lost)):
            raise DataError(
                f"{self._lost} samples or tars of data.urls cannot be used, beside {self._used} "
                f"samples that can, which is more than data.max_lost={self._fraction:g}; the last "
                f"is {text}: make the tars again, leave it out, or allow more"
            )


def endless_samples(
    urls: Sequence[str],
    seed: int,
    buffer: int,
    *,
    patience: float,
    losses: Losses,
    rules: Rules,
) -> Iterator[dict[str, Any]]:
    """Give samples without end, as webdataset shapes them: ``__key__``, ``__url__``, members.

    Args:
        urls: tars, drawn with replacement.
        seed: of the order of tars and samples.
        buffer: samples that are shuffled together.
        patience: seconds for which a read that fails is tried again.
        losses: is told what cannot be used.
        rules: where image and captions of a sample stand.
    """
    import webdataset
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def wanted(name: str) -> bool:
        return is_wanted(split_name(name)[1], rules)

    def meant(sample: dict[str, Any]) -> bool:
        return is_sample([name for name in sample if not name.startswith("__")], rules)

    def grouped() -> Iterator[dict[str, Any]]:
        for tar in _opened(tars, patience, losses):
            told, held = losses.tars, None
            members = tar_file_expander([tar], handler=losses, select_files=wanted)
            samples = group_by_keys(members, keys=split_name, handler=losses.skip)
            for sample in filter(meant, samples):
                if held is not None:
                    yield held
                held = sample
            if losses.tars == told and held is not None:
                yield held

    tars = webdataset.ResampledShards(list(urls), deterministic=True, worker_seed=lambda: seed)
    shuffle = webdataset.shuffle(buffer, rng=random.Random(seed))
    shuffled: Iterator[dict[str, Any]] = iter(shuffle(_counted(grouped(), losses)))
    return shuffled


def stored_sample(members: dict[str, Any], number: int, rules: Rules) -> tuple[StoredSample, int]:
    """Return a sample as the reader of indexed shards gives it, and its EXIF orientation.

    Args:
        members: by extension, and ``__key__``.
        number: its position in the stream, for its class where none is given: a number below
            zero, which is no class that anyone gave.
        rules: where image and captions stand.

    Raises:
        UnfitSample: no image, more than one, or no caption.
    """
    found = {name: content for name, content in members.items() if not name.startswith("__")}
    image = image_of(found, rules)
    told = described({name: found[name] for name in texts_of(found, rules)}, rules, found)
    given = told.class_id != NO_CLASS
    form = IMAGE_FORMATS_OF_SUFFIX.get(f".{image.rpartition('.')[2]}", "jpeg")
    stored = StoredSample(
        key=told.key or str(members["__key__"]),
        image=found[image],
        image_format=form,
        captions=told.captions,
        class_id=told.class_id if given else -1 - number,
    )
    return stored, told.orientation


def _opened(
    tars: Iterable[dict[str, Any]], patience: float, losses: Losses
) -> Iterator[dict[str, Any]]:
    """Add a stream to each tar; when it is through, tell of one that broke off or was empty."""
    server = Server(patience)
    for tar in tars:
        losses.place, found, told = tar["url"], losses.found, losses.tars
        with _open(tar["url"], server) as stream:
            tail = _Tail(stream)
            yield {**tar, "stream": tail}
        if losses.tars > told:
            continue
        if tar["url"].endswith(".tar") and any(tail.last):
            losses(tarfile.ReadError("its end is missing"))
        elif losses.found == found:  # of nothing but such tars the stream would never come back
            losses(tarfile.ReadError("it holds no samples"))


def _counted(samples: Iterable[dict[str, Any]], losses: Losses) -> Iterator[dict[str, Any]]:
    for sample in samples:
        losses.found += 1
        yield sample


def _open(url: str, server: Server) -> IO[bytes]:
    if is_remote(url, "data.urls"):
        return io.BufferedReader(RemoteFile(server, url), BLOCK)
    patience: RetryPolicy = server.patience
    return patience.attempt(
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
