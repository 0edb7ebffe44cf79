"""The hidden folder in which a split is made, what is in it, and who may write there.

Locks die with their processes. Where a file system has none (some network file systems), two
builds at once only do the same work twice: every file appears whole, under its final name, and
with the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_json, write_json
from t2i_hpc.common.lazy_sequence import LazySequence
from t2i_hpc.data.format.manifest import VOCABULARY, Storing
from t2i_hpc.data.format.sums import SHA256
from t2i_hpc.data.format.tables import shard_name

LOCK_SECONDS = 2.0  # to wait for a lock
_FORMAT = 1
_DIGITS = 32  # of an identity
GROUP = 10**6  # shards of a group of tars at most: shard k of group g has the number g·10⁶ + k
UNKNOWN = 1 << 40  # samples of a build of which a partition has read its own groups alone
_MOST_NAMED = 8  # partitions
_LOCK_NAME = re.compile(r"partition-\d+-of-(\d+)\.lock")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Partition:
    """Partition `number` of `count`, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Partition:
        """Read ``3/16``; an empty text is the whole.

        Raises:
            DataError: no such partition.
        """
        if not text:
            return cls()
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise DataError(f"partition={text} is none: write e.g. 3/16, from 1/16 to 16/16")
        return cls(number, count)

    def of(self, shards: int) -> range:
        """Return its shards: neighbors, nearly equally many a partition."""
        return range((self.number - 1) * shards // self.count, self.number * shards // self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class Workspace:
    """Where everything is while the split `target` is made."""

    target: Path

    @property
    def folder(self) -> Path:
        """The hidden folder."""
        return self.target.with_name(f".{self.target.name}.partial")

    @property
    def split(self) -> Path:
        """What becomes the split."""
        return self.folder / "split"

    @property
    def vocabulary(self) -> Path:
        """The vocabulary of the build."""
        return self.folder / VOCABULARY

    @property
    def rejected(self) -> Path:
        """Where rejected images are listed if there are too many of them."""
        return self.folder / "rejected.jsonl"

    def tar(self, shard: int) -> Path:
        """A shard."""
        return self.split / shard_name(shard)

    def record(self, shard: int) -> Path:
        """What is known of a shard that is done."""
        return self.folder / f"{shard:06d}.json"

    def rows(self, shard: int) -> Path:
        """A shard's rows of the index."""
        return self.folder / f"{shard:06d}.rows"

    def texts(self, shard: int) -> Path:
        """The descriptions of a tar that is indexed in place."""
        return self.folder / f"{shard:06d}.texts"

    def words(self, shard: int) -> Path:
        """The counted words of a tar that is indexed in place."""
        return self.folder / f"{shard:06d}.words"

    @property
    def lock(self) -> Path:
        """The file that whoever works on this split locks."""
        return self.target.with_name(f".{self.target.name}.lock")

    @property
    def output_lock(self) -> Path:
        """The file that builds lock which write into the same folder of splits."""
        return self.target.with_name(".splits.lock")

    def lock_of(self, partition: Partition) -> Path:
        """The file that a partition locks; its name says how many partitions there are."""
        return self.folder / f"partition-{partition.number}-of-{partition.count}.lock"

    def partitions(self) -> int:
        """Return into how many partitions the work was cut, as far as is known; 1: not at all."""
        found = (_LOCK_NAME.fullmatch(path.name) for path in self.folder.glob("partition-*.lock"))
        return max((int(match[1]) for match in found if match), default=1)


@dataclass(frozen=True)
class DerivedIdentities(LazySequence[str]):
    """Identities of the shards of a source that has one itself, reckoned when they are asked for.

    A list would be as long as the data: here a partition of 10⁹ samples begins as soon as one of
    10⁵.

    Attributes:
        base: what all shards follow from.
        samples: number of samples of the source.
        shard_samples: of a shard, the last one excepted.
    """

    base: str
    samples: int
    shard_samples: int

    def __len__(self) -> int:
        return len(range(0, self.samples, self.shard_samples))

    def at(self, number: int) -> str:
        """Return the identity of a shard."""
        first = number * self.shard_samples
        last = min(first + self.shard_samples, self.samples)
        return sha256_of_json([self.base, first, last])[:_DIGITS]


@dataclass(frozen=True)
class Build:
    """What is built: all that a manifest needs beside the shards.

    Attributes:
        name: name of the data set.
        split: name of the split.
        size: shorter side in pixels to which larger images are scaled; 0: images are kept.
        samples: number of samples of the source.
        max_rejected: fraction of them that may be rejected.
        identities: of each shard, what its bytes follow from; of grouped tars by their numbers.
        tars: number of tars of the source.
        remarks: what the user should know when the split is made.
        storing: how images are stored.
        in_place: whether tars of others are indexed, each of which is a unit then.
        letters, min_count, max_words: of a vocabulary that is made of the captions at the end.
        filter: which samples were taken.
        checksum: which hash of each tar is kept.
        groups: identities of the groups of tars, whose records say which shards there are.
    """

    name: str
    split: str
    size: int
    samples: int
    max_rejected: float
    identities: list[str] | DerivedIdentities | dict[int, str]
    tars: int = 0
    remarks: list[str] = field(default_factory=list)
    storing: Storing = field(default_factory=Storing)
    in_place: bool = False
    letters: str = "ascii"
    min_count: int = 1
    max_words: int = 0
    filter: str = ""
    checksum: str = SHA256
    groups: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, workspace: Workspace) -> Build | None:
        """Return what was built here; None where nothing was, or by another version."""
        try:
            content: dict[str, Any] = json.loads(_build_file(workspace).read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                return None
            if isinstance(content["identities"], dict):
                content["identities"] = DerivedIdentities(**content["identities"])
            return cls(**{**content, "storing": Storing(**content.get("storing", {}))})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def save(self, workspace: Workspace) -> None:
        """Write it into the hidden folder; what a partition has read of groups is not in it."""
        saved = replace(self, identities=[], samples=0) if self.groups else self
        write_json(_build_file(workspace), asdict(saved) | {"format": _FORMAT})

    def shards_of(self, partition: Partition) -> Sequence[int]:
        """Return the numbers of a partition's shards, as far as they are known."""
        if not isinstance(self.identities, dict):
            return partition.of(len(self.identities))
        groups = partition.of(len(self.groups))
        return [shard for shard in self.identities if shard // GROUP in groups]

    def numbered(self) -> Iterable[tuple[int, str]]:
        """Give the number and the identity of each shard."""
        found = self.identities
        return found.items() if isinstance(found, dict) else enumerate(found)

    def follows_from_the_same(self, other: Build) -> bool:
        """Whether another build makes the same shards."""
        if self.groups or other.groups:
            return self.groups == other.groups
        return self.identities == other.identities

    @property
    def allowed(self) -> int:
        """How many samples may be rejected: one in any case, unless none may be."""
        return allowed_of(self.max_rejected, self.samples)

    @property
    def allowed_tars(self) -> int:
        """How many tars may be damaged, since nobody can count its samples."""
        return allowed_of(self.max_rejected, self.tars)


def unmade(workspace: Workspace, missing: Sequence[int], units: int) -> str:
    """Say what has to be built where some of all units are missing."""
    count = workspace.partitions()
    partitions = [Partition(number, count) for number in range(1, count + 1)]
    still_open = [f"partition={one}" for one in partitions if {*one.of(units)} & {*missing}]
    named = ", ".join(still_open[:_MOST_NAMED]) + (", …" if still_open[_MOST_NAMED:] else "")
    return f"build {named} of it" if count > 1 else "build it again without partition="


def allowed_of(max_rejected: float, count: int) -> int:
    """Return how many of `count` things are a fraction of them, rounded up."""
    return math.ceil(round(max_rejected * count, 6))  # 0.07 * 100 is above 7


def _build_file(workspace: Workspace) -> Path:
    return workspace.folder / "build.json"


@contextmanager
def locked(
    path: Path,
    message: str,
    *,
    shared: bool = False,
    wait: bool = False,
    keep: bool = False,
) -> Iterator[None]:
    """Hold a file lock for the block, exclusive or shared.

    A file is locked, not its folder, and it is open for writing: network file systems have no
    other exclusive locks. Workers whose parent was killed hold its lock until their image is
    done: hence we wait a little in any case.

    Args:
        path: the file; made where it is not there, and removed by the last that held it.
        message: what is reported when another process holds it.
        shared: others may hold it shared at the same time.
        wait: wait for as long as another process holds it, after one message.
        keep: leave the file where it is.

    Raises:
        DataError: another process holds it, unless we wait.
    """
    descriptor = _acquire(path, message, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait)
    try:
        yield
    finally:
        if not keep and _lock(descriptor, fcntl.LOCK_EX):  # nobody else holds it
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, message: str, kind: int, wait: bool) -> int:
    deadline, said = time.monotonic() + LOCK_SECONDS, False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
        if _lock(descriptor, kind) and _is_same(descriptor, path):
            return descriptor
        os.close(descriptor)
        late = time.monotonic() > deadline
        if late and not wait:
            raise DataError(message)
        if late and not said:
            sys.stderr.write(f"{message}\n")
            said = True
        time.sleep(0.05)


def _lock(descriptor: int, kind: int) -> bool:
    """Return whether the lock is ours, as it always is on a file system without locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether a lock file is still the one of that name: who held it last has removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of writing into `folder` into one sentence.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(
                f"the disk of {folder} is full ({error.strerror}): make room and run the command "
                "again, finished shards are kept"
            ) from error
        raise DataError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; finished shards "
            "are kept"
        ) from error
