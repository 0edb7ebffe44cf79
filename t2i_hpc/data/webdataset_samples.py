"""Samples of tars without a manifest, through webdataset's own pipeline.

webdataset draws tars at random, again and again, walks them, groups their members and shuffles
what comes out; only the opening is ours, since its own runs commands. Where a tar lies does not
matter: a folder, a web server, a bucket.

A sample is all members that share a name up to its first dot: an image (.jpg, .jpeg, .png,
.webp) and its captions, one a line in ``.txt``, or in a ``.json`` with ``captions``, ``caption``
or ``text``. What cannot be used is counted and named, and too much of it ends the run.
"""

from __future__ import annotations

import io
import json
import logging
import random
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from t2i_hpc.common.errors import DataError, UserError
from t2i_hpc.data.reader import StoredSample
from t2i_hpc.data.sources.sample import IMAGE_FORMATS_OF_SUFFIX, captions_in, non_empty
from t2i_hpc.data.storage.patience import Patience
from t2i_hpc.data.storage.server import BLOCK, Server
from t2i_hpc.data.storage.urls import is_remote, shown

_TEXTS = (".txt", ".json")
_TOLERATED, _SHARE = 10, 0.01  # samples that may be lost in any case, and of all
_END = 512  # bytes of zeros with which a whole tar ends


class Losses:
    """Counts what cannot be used, says so, and ends the run when it is more than a few.

    Attributes:
        place: the tar that is being read, for messages.
        found: samples that were found so far, good or not.
        tars: losses within tars so far, as opposed to samples that were found.
    """

    def __init__(self) -> None:
        self.place = ""
        self.found = self.tars = self._used = self._lost = 0
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
        broken = isinstance(error, (tarfile.TarError, EOFError))
        self.lose(self.place, f"it is damaged or breaks off: {said}" if broken else said)
        return True

    def lose(self, name: str, reason: str) -> None:
        """Count a loss.

        Raises:
            DataError: there were more than 10 losses and 1 %.
        """
        self._lost += 1
        text = f"{shown(name)} ({' '.join(reason.split())})"
        if name not in self._told:
            logging.getLogger(__name__).warning("left out: %s", text)
            self._told.add(name)
        if self._lost > max(_TOLERATED, _SHARE * self._used):
            raise DataError(
                f"{self._lost} samples or tars of data.urls cannot be used, beside {self._used} "
                f"samples that can; the last is {text}: make the tars again or leave it out"
            )


def endless_samples(
    urls: Sequence[str], seed: int, buffer: int, patience: float, losses: Losses
) -> Iterator[dict[str, Any]]:
    """Give samples without end, as webdataset shapes them: ``__key__``, ``__url__``, members.

    Args:
        urls: tars, drawn with replacement.
        seed: of the order of tars and samples.
        buffer: samples that are shuffled together.
        patience: seconds for which a read that fails is tried again.
        losses: is told what cannot be used.
    """
    import webdataset
    from webdataset.tariterators import group_by_keys, tar_file_expander

    tars = webdataset.ResampledShards(list(urls), deterministic=True, worker_seed=lambda: seed)
    opened = _opened(tars, patience, losses)
    members = tar_file_expander(opened, handler=losses, select_files=_is_wanted)
    samples = _counted(group_by_keys(members, handler=losses), losses)
    shuffle = webdataset.shuffle(buffer, rng=random.Random(seed))
    shuffled: Iterator[dict[str, Any]] = iter(shuffle(samples))
    return shuffled


def stored_sample(members: dict[str, Any], number: int) -> StoredSample:
    """Return a sample as the reader of indexed shards gives it.

    Args:
        members: by suffix without its dot, and ``__key__``.
        number: its class, where none is given.

    Raises:
        ValueError: no image, more than one, or no caption.
    """
    images = [suffix for suffix in members if f".{suffix}" in IMAGE_FORMATS_OF_SUFFIX]
    if len(images) != 1:
        raise ValueError("it has no image" if not images else "it has more than one image")
    content = _description(members.get("json"))
    captions = non_empty(members.get("txt", b"").decode("utf-8", "replace").splitlines())
    captions = captions or captions_in(content)
    if not captions:
        raise ValueError("it has no caption: a .txt, or 'captions', 'caption' or 'text' in .json")
    given = content.get("class")
    return StoredSample(
        key=str(content.get("key", members["__key__"])),
        image=members[images[0]],
        image_format=IMAGE_FORMATS_OF_SUFFIX[f".{images[0]}"],
        captions=captions,
        class_id=given if type(given) is int and given >= 0 else number,
    )


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
    patience: Patience = server.patience
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


def _is_wanted(name: str) -> bool:
    return Path(name).suffix.lower() in (*IMAGE_FORMATS_OF_SUFFIX, *_TEXTS)


def _description(text: bytes | None) -> dict[str, Any]:
    try:
        content = json.loads(text) if text else {}
    except RecursionError as error:
        raise ValueError("its .json is nested too deep") from error
    return content if isinstance(content, dict) else {}
