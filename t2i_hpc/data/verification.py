"""Is every byte of a split right?

Training checks sizes and the index alone, since it must start fast. Here everything is read
again, and what is wrong is named with its shard and member, all of it at once, so that a few
files can be copied again instead of a data set. Shards are taken by several processes; what is
found to be whole may be noted in a file, from which a later call resumes. Of a split on a server
each process fetches one shard at a time, into a temporary file.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import append_json_line, read_json_lines
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import MANIFEST, VOCABULARY, Manifest
from t2i_hpc.data.format.sums import CHECKSUMS, sum_of_file
from t2i_hpc.data.format.tables import REBUILD, ROW, Shard, shard_name
from t2i_hpc.data.format.tars import index_tar, sample_names
from t2i_hpc.data.images import Pixels, decode
from t2i_hpc.data.storage.fetching import BLOCK, Server, join
from t2i_hpc.data.storage.local_shards import LocalStorage
from t2i_hpc.data.storage.retry import shown
from t2i_hpc.data.tar_reader import Reader

_LISTED = 20  # problems
_RETRY_SECONDS = 120.0
_REINDEX = "index the tars again"
_LOG = logging.getLogger(__name__)


def verify_split(
    manifest: Manifest,
    advance: Callable[[int], None],
    workers: int = 0,
    log: Path | None = None,
) -> None:
    """Read a split again, all of it: hashes, index, every description and every image.

    Args:
        manifest: the split.
        advance: told how many samples more are read.
        workers: processes; 0 or 1: this one alone.
        log: file of shards that are all right, which are not read again.

    Raises:
        DataError: the one thing that is not as the manifest says, by shard and member; or the
            number of such things, of which the first 20 are logged as errors before.
    """
    found = list(islice(problems_of(manifest, advance, workers, log), _LISTED + 1))
    if len(found) == 1:
        raise DataError(found[0])
    for problem in found[:_LISTED]:
        _LOG.error("%s", problem)
    if found:
        several = f"{len(found)} problems, listed above"
        many = f"more than {_LISTED} problems, the first {_LISTED} are listed above"
        raise DataError(
            f"{manifest.location or manifest.folder} has "
            f"{several if len(found) <= _LISTED else many}; {_remedy(manifest)}"
        )


def problems_of(
    manifest: Manifest,
    advance: Callable[[int], None],
    workers: int = 0,
    log: Path | None = None,
) -> Iterator[str]:
    """Give all that is wrong with a split, a sentence each, while reading it once.

    A shard that cannot be indexed is one problem; else each of its samples may be one.
    """
    if not manifest.location:  # on a server it was compared when the split was opened
        try:
            path = manifest.folder.parent / VOCABULARY
            manifest.check_vocabulary(Vocabulary.load(path).sha256, str(path))
        except DataError as error:
            yield str(error)
    whole, smallest = True, 1 << 62
    for found in _checked_shards(manifest, advance, workers, log):
        yield from found.problems
        whole = whole and not found.problems
        smallest = min(smallest, found.smallest)
    if whole and smallest != manifest.smallest:
        yield (
            f"{manifest.folder / MANIFEST} calls {manifest.smallest} px the smallest side, but an "
            f"image has {smallest} px; {_remedy(manifest)}"
        )


@dataclass
class CheckedShard:
    """What is wrong with a shard, and the shortest side among its images, in px."""

    number: int
    problems: list[str] = field(default_factory=list)
    smallest: int = 1 << 62


def _checked_shards(
    manifest: Manifest, advance: Callable[[int], None], workers: int, log: Path | None
) -> Iterator[CheckedShard]:
    """Give all shards in order, those of the log without reading them."""
    done = _logged(manifest, log)
    for found in done.values():
        advance(manifest.shard(found.number).count)
    still_open = [one for one in range(manifest.shard_count) if one not in done]
    for found in _read(manifest, still_open, advance, workers):
        if log is not None and not found.problems:
            line = {"manifest": manifest.digest, "shard": found.number, "px": found.smallest}
            append_json_line(log, line)
        done[found.number] = found
    yield from (done[number] for number in sorted(done))


def _logged(manifest: Manifest, log: Path | None) -> dict[int, CheckedShard]:
    if log is None or not log.exists():
        return {}
    lines = [one for one in read_json_lines(log) if one.get("manifest") == manifest.digest]
    return {one["shard"]: CheckedShard(one["shard"], smallest=one["px"]) for one in lines}


def _read(
    manifest: Manifest, shards: list[int], advance: Callable[[int], None], workers: int
) -> Iterator[CheckedShard]:
    if workers <= 1:
        for number in shards:
            yield check_shard(manifest, number, advance)
        return
    # Few at a time: what is found first should be told first, and shards may be a million.
    with ProcessPoolExecutor(min(workers, len(shards) or 1), get_context("fork")) as pool:
        for begin in range(0, len(shards), 4 * workers):
            block = shards[begin : begin + 4 * workers]
            jobs = [pool.submit(check_shard, manifest, number) for number in block]
            for number, job in zip(block, jobs, strict=True):
                try:
                    found = job.result()
                except BrokenProcessPool as error:
                    raise DataError(
                        "a worker process was killed, perhaps for lack of memory: run the command "
                        "again with fewer workers="
                    ) from error
                advance(manifest.shard(number).count)
                yield found


def check_shard(
    manifest: Manifest, number: int, advance: Callable[[int], None] = lambda _: None
) -> CheckedShard:
    """Read a shard again and say what is wrong with it."""
    found, shard = CheckedShard(number), manifest.shard(number)
    name = _address(manifest, number) or manifest.tar(number)
    try:
        with _here(manifest, shard) as path:
            reader = Reader(manifest, _OneTar(manifest, path))
            for problem in _problems_of_shard(manifest, shard, reader, found, advance):
                found.problems.append(problem.replace(str(path), shown(name)))
    except DataError as error:
        found.problems.append(str(error))
        advance(shard.count)
    return found


def _problems_of_shard(
    manifest: Manifest,
    shard: Shard,
    reader: Reader,
    found: CheckedShard,
    advance: Callable[[int], None],
) -> Iterator[str]:
    """Give what is wrong with a shard; `found` learns the size of each image."""
    path = Path(reader.name_of(int(manifest.first[shard.number])).partition(" in ")[2])
    try:
        names = _names(manifest, shard, path)
    except DataError as error:
        yield str(error)
        advance(shard.count)
        return
    whole = True
    for number, name in enumerate(names, int(manifest.first[shard.number])):
        try:
            image = _checked_image(reader, number, path, name)
            found.smallest = min(found.smallest, *image.shape[:2])
        except DataError as error:
            whole = False
            yield str(error)
        advance(1)
    if whole and sum_of_file(path, manifest.checksum) != shard.sha256:
        yield (
            f"the content of {path} has changed ({CHECKSUMS[manifest.checksum]} differs), though "
            f"each of its samples can be read; {_remedy(manifest)}"
        )


def _names(manifest: Manifest, shard: Shard, path: Path) -> list[str]:
    """Return the names of a shard's images, after comparing their places with the index."""
    if manifest.in_place:
        size = path.stat().st_size if path.exists() else -1
        if size != shard.bytes:
            there = f"has {size:,} bytes, not {shard.bytes:,}" if size >= 0 else "is missing"
            raise DataError(f"{path} {there}; {_REINDEX}")
        rows = manifest.rows(shard.number)
        return [f"at byte {offset:,}" for offset in rows["image_offset"].tolist()]
    found = index_tar(path)
    if len(found) != shard.count:
        raise DataError(f"{path} holds {len(found):,} samples, not {shard.count:,}; {REBUILD}")
    names = sample_names(path)
    places = [name for name in ROW.names or () if name != "checksum"]  # bytes are read later
    other = found[places] != manifest.rows(shard.number)[places]
    if other.any():
        name = names[int(np.argmax(other))]
        raise DataError(f"{path} has its member {name!r} elsewhere than indexed; {REBUILD}")
    return names


def _checked_image(reader: Reader, number: int, path: Path, name: str) -> Pixels:
    try:
        sample = reader.read(number)
        return sample.upright(decode(sample.image, name))
    except DataError as error:
        raise DataError(f"{path} is damaged at its member {name!r}: {error}") from error


def _remedy(manifest: Manifest) -> str:
    return _REINDEX if manifest.in_place else REBUILD


# --- where a shard is


class _OneTar(LocalStorage):
    """Reads from one tar here, whichever shard is asked for."""

    def __init__(self, manifest: Manifest, path: Path) -> None:
        super().__init__(manifest)
        self._path = path

    def name_of(self, shard: int) -> str:
        """Return its path."""
        return str(self._path)


def _address(manifest: Manifest, number: int) -> str:
    """Return the address of a shard on a server; empty: it is in a folder."""
    if not manifest.server:
        return ""
    return manifest.tar(number) if manifest.in_place else join(manifest.server, shard_name(number))


@contextmanager
def _here(manifest: Manifest, shard: Shard) -> Iterator[Path]:
    """Give the path of a shard, fetched for the block where it is on a server."""
    address = _address(manifest, shard.number)
    if not address:
        yield Path(manifest.tar(shard.number))
        return
    server = Server(_RETRY_SECONDS)
    with tempfile.TemporaryDirectory(prefix="t2i_hpc_verify_") as folder:
        path = Path(folder) / shard.name
        with path.open("wb") as stream:
            for done in range(0, shard.bytes, BLOCK):
                stream.write(server.read(address, done, min(BLOCK, shard.bytes - done)))
        yield path
