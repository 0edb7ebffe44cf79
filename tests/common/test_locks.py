"""Locks hold on NFS, which takes an exclusive lock only on what is open for writing."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO, Any

import pytest

from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.data.storage.cache import Cache, Heartbeat
from t2i_hpc.evaluation.compute import file_lock
from t2i_hpc.runs.run_directory import locked
from t2i_hpc.runs.sessions import is_held
from t2i_hpc.training.deepspeed_build import compiling

_FLOCK = fcntl.flock


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lock as NFS does; note what kinds of locks were taken."""
    kinds: list[int] = []

    def like_nfs(target: Any, kind: int) -> None:
        descriptor = target if isinstance(target, int) else target.fileno()
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        needed = {fcntl.LOCK_EX: os.O_WRONLY, fcntl.LOCK_SH: os.O_RDONLY}
        wanted = needed.get(kind & ~fcntl.LOCK_NB)
        if wanted is not None and access not in (wanted, os.O_RDWR):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        kinds.append(kind & ~fcntl.LOCK_NB)
        _FLOCK(target, kind)

    monkeypatch.setattr(fcntl, "flock", like_nfs)
    return kinds


def test_every_lock_is_taken(tmp_path: Path, taken: list[int]) -> None:
    with locked(tmp_path):
        assert is_held(tmp_path)
    with file_lock(tmp_path / "statistics"):
        pass
    cache = Cache(str(tmp_path / "cache"), 1000, 0.0)

    def fetch(stream: IO[bytes], _: Heartbeat) -> None:
        stream.write(b"abc")

    os.close(cache.open("aa.tar", 3, fetch))
    assert taken.count(fcntl.LOCK_EX) >= 4


def test_a_file_system_without_locks_is_no_second_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path):
        pass
    assert "has no file locks" in caplog.text


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_killed_compilation_left_is_removed_by_who_holds_the_lock(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    locks: bool,
) -> None:
    """Without locks it may be that of a process which compiles now; torch then waits for it."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if not locks:
        monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    left = tmp_path / "utils" / "lock"
    left.parent.mkdir()
    left.touch()
    with compiling():
        assert left.exists() == (not locks)
    assert ("set TORCH_EXTENSIONS_DIR to a folder on a local disk" in caplog.text) == (not locks)


def test_a_folder_where_nothing_can_be_compiled_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "folder"))
    with pytest.raises(ConfigurationError, match="set TORCH_EXTENSIONS_DIR"), compiling():
        pass


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunError, match="another process"), locked(tmp_path):
        pass
