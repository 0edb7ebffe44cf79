"""One process computes, the others wait; a dead one holds nothing up."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_hpc.evaluation.compute import file_lock

# Says that it has the lock, then waits for a line before it ends.
_HOLDER = """
import sys
from pathlib import Path
from t2i_hpc.evaluation.compute import file_lock
with file_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""
# Looks for the file, makes it where it is not there, and says what it did.
_WORKER = """
import sys
from pathlib import Path
from t2i_hpc.evaluation.compute import file_lock
path = Path(sys.argv[1])
with file_lock(path):
    if path.exists():
        print("found")
    else:
        path.write_text("computed")
        print("computed")
"""


def _start(code: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_that_ask_at_once_compute_once(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "shard"
    workers = [_start(_WORKER, path) for _ in range(3)]
    said = [worker.communicate(timeout=120)[0].strip() for worker in workers]
    assert sorted(said) == ["computed", "found", "found"]


def test_a_killed_holder_holds_nothing_up(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    holder = _start(_HOLDER, path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    lock = tmp_path / ".shard.lock"
    with lock.open("ab") as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.kill()
    holder.communicate(timeout=120)
    with file_lock(path):
        assert lock.exists()


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with file_lock(tmp_path / "shard"):
        entered = True
    assert entered
