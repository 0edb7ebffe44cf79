"""The node's cache: fetched once by whoever comes first, whole or not there, within its limit."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.split import Split
from t2i_hpc.data.storage import cache as module
from t2i_hpc.data.storage.cache import Cache, Heartbeat
from tests.data.storage.conftest import LONG
from tests.support.servers import FileServer, Handler

FORK = multiprocessing.get_context("fork")


def copies(config: DataConfig, pattern: str = "*") -> list[Path]:
    return sorted((Path(config.cache) / "shards").glob(pattern))


def slowly(handler: Handler) -> bool:
    """Send half of what is asked for, wait, and send the rest."""
    status, content = handler.content() or (404, b"")
    handler.send(status, content[: len(content) // 2], len(content))
    handler.wfile.flush()
    time.sleep(0.5)
    handler.wfile.write(content[len(content) // 2 :])
    return True


def await_that(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_that_come_at_once_fetch_once(server: FileServer, config: DataConfig) -> None:
    server.fault = lambda handler, path: path.endswith(".tar") and slowly(handler)

    def read() -> None:
        assert Split.open(config, "train").sample(3).key == "0003.png"

    processes = [FORK.Process(target=read) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    for path in ("train/000000.tar", "train/index.npy", "train/shards.npy"):
        assert server.asked[path] == 1


def test_a_fetch_that_is_killed_leaves_nothing_broken(
    server: FileServer, config: DataConfig
) -> None:
    server.fault = lambda handler, path: path.endswith("000001.tar") and slowly(handler)
    process = FORK.Process(target=lambda: Split.open(config, "train").sample(7))
    process.start()
    await_that(lambda: copies(config, "*.part"))
    process.kill()
    process.join()
    assert len(copies(config, "*.part")) == 1
    split = Split.open(config, "train")
    split.sample(0)  # another shard, whose fetching sweeps
    assert not copies(config, "*.part")
    assert split.sample(7).key == "0007.png"
    assert len(copies(config, "*.tar")) == 2


def test_what_is_being_fetched_is_not_swept(server: FileServer, config: DataConfig) -> None:
    server.fault = lambda handler, path: path.endswith("000001.tar") and slowly(handler)
    process = FORK.Process(target=lambda: Split.open(config, "train").sample(7))
    split = Split.open(config, "train")
    process.start()
    await_that(lambda: copies(config, "*.part"))
    split.sample(0)
    process.join()
    assert process.exitcode == 0
    assert len(copies(config, "*.tar")) == 2


def test_the_limit_evicts_what_was_used_longest_ago(
    server: FileServer, config: DataConfig, shards: Path
) -> None:
    sizes = [path.stat().st_size for path in sorted((shards / "train").glob("*.tar"))]
    limit = max(sizes) * 2.5e-9
    config = replace(config, cache_gigabytes=limit, shuffle_window=1)
    split = Split.open(config, "train")
    for number in (0, 5, 10, 15):
        assert split.sample(number).key == f"{number:04d}.png"
        assert sum(path.stat().st_size for path in copies(config)) + held() <= limit * 1e9
    Split.open(config, "train").sample(15)
    assert server.asked["train/000003.tar"] == 1
    split.sample(0)
    assert server.asked["train/000000.tar"] == 2
    Split.open(config, "train").sample(10)  # evicted by 0, since 15 was used after it
    assert server.asked["train/000002.tar"] == 2


def held() -> int:
    """Return the bytes of deleted copies that this process keeps on the disk."""
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            name = str(link.readlink())
            if "/shards/" in name and name.endswith(" (deleted)"):
                total += link.stat().st_size
    return total


def used(config: DataConfig) -> int:
    """Return the bytes that copies take, by name or not."""
    return sum(path.stat().st_size for path in copies(config)) + held()


def test_a_small_disk_is_used_to_its_size(
    server: FileServer, config: DataConfig, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards fit on the disk, the limit is far beyond it: an epoch passes all the same."""
    size = max(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    disk = int(size * 2.5)
    monkeypatch.setattr(Cache, "_free", lambda self: disk - used(config))
    monkeypatch.setattr(Cache, "_spare", lambda self: size // 10)
    split = Split.open(config, "train")
    most = 0
    for number in range(split.count):
        assert split.sample(number).key == f"{number:04d}.png"
        most = max(most, len(copies(config)))
        assert used(config) <= disk
    assert most == 2
    assert sum(server.asked[f"train/{number:06d}.tar"] for number in range(5)) == 5


def test_a_quota_that_the_disk_does_not_tell_evicts(
    server: FileServer, config: DataConfig, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = max(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    allocate = os.posix_fallocate

    def quota(descriptor: int, offset: int, count: int) -> None:
        if used(config) + count > 2.5 * size:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        allocate(descriptor, offset, count)

    monkeypatch.setattr(os, "posix_fallocate", quota)
    split = Split.open(config, "train")
    for number in range(0, split.count, 5):
        split.sample(number)
    assert used(config) <= 2.5 * size


def test_reading_a_copy_keeps_it_longer(
    server: FileServer, config: DataConfig, shards: Path
) -> None:
    size = max(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    config = replace(config, cache_gigabytes=size * 2.5e-9, shuffle_window=1)
    split = Split.open(config, "train")
    for age, number in ((20, 0), (10, 5)):
        before = set(copies(config))
        split.sample(number)
        (copy,) = set(copies(config)) - before
        os.utime(copy, (copy.stat().st_atime - age, copy.stat().st_mtime - age))
    Split.open(config, "train").sample(0)
    split.sample(10)
    assert len(copies(config)) == 2
    Split.open(config, "train").sample(0)
    assert server.asked["train/000000.tar"] == 1


def test_a_copy_that_rots_is_fetched_again(server: FileServer, config: DataConfig) -> None:
    split = Split.open(config, "train")
    expected = split.sample(0)
    (copy,) = copies(config)
    content = bytearray(copy.read_bytes())
    content[600] ^= 1
    copy.write_bytes(content)
    assert split.sample(0) == expected
    assert server.asked["train/000000.tar"] == 2


def test_a_copy_that_was_cut_is_fetched_again(server: FileServer, config: DataConfig) -> None:
    split = Split.open(config, "train")
    expected = split.sample(4)
    (copy,) = copies(config)
    os.truncate(copy, 700)
    assert split.sample(4) == expected
    assert server.asked["train/000000.tar"] == 2


def test_a_copy_that_someone_replaced_is_kept(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 1000, 0.0)

    def fetch(stream: IO[bytes], _: Heartbeat) -> None:
        stream.write(b"old")

    descriptor = cache.open("aa.tar", 3, fetch)
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").rename(tmp_path / "shards" / "aa.tar")
    cache.drop("aa.tar", os.fstat(descriptor))
    assert (tmp_path / "shards" / "aa.tar").read_bytes() == b"new"
    os.close(descriptor)


@pytest.mark.parametrize("name", ["index.npy", "manifest.json"])
def test_a_kept_table_that_was_cut_is_fetched_again(
    server: FileServer, config: DataConfig, name: str
) -> None:
    Split.open(config, "train")
    (table,) = Path(config.cache).glob(f"tables/*/{name}")
    os.truncate(table, 100)
    assert Split.open(config, "train").sample(19).key == "0019.png"
    assert server.asked["train/index.npy"] == 2


def test_a_full_disk_is_reported(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLE", 0.1)
    split = Split.open(config, "train")
    split.sample(5)
    monkeypatch.setattr(Cache, "_free", lambda self: 1000)
    said = r"the disk of \S+cache has 1 kB left, .* shard of [\d.]+ kB.*data\.cache="
    with pytest.raises(DataError, match=said):
        split.sample(0)
    assert len(copies(config)) == 1  # what could not help was not deleted


def test_a_folder_that_cannot_be_made(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot make \S+file/cache .*data\.cache="):
        Split.open(replace(config, cache=str(tmp_path / "file" / "cache")), "train")


def test_someone_who_stands_still_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.2)
    cache = Cache(str(tmp_path), 1000, 0.0)
    with (
        cache.locked("aa.tar"),
        pytest.raises(DataError, match=r"another process holds \S+/locks/aa"),
        cache.locked("aa.tar"),
    ):
        pass
    with cache.locked("aa.tar"):
        pass


@pytest.mark.parametrize("variable", ["SLURM_TMPDIR", "TMPDIR"])
def test_the_usual_folder_is_the_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(variable, str(tmp_path))
    folder = Cache("", 1000, 0.0).folder
    assert folder == tmp_path / f"t2i_hpc-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "mine")
    folder.symlink_to(tmp_path / "mine")
    with pytest.raises(DataError, match="belongs to someone else"):
        Cache("", 1000, 0.0)


def test_a_folder_that_is_named_is_as_open_as_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        cache = Cache(str(tmp_path / "shared"), 1000, 0.0)
        with cache.locked("aa.tar"):
            pass
    finally:
        os.umask(before)
    assert cache.folder.stat().st_mode & 0o777 == 0o775
    assert (cache.folder / "locks" / "aa").stat().st_mode & 0o777 == 0o664
