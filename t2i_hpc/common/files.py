"""Files that are either whole or not there: atomic writes, fsync, hashes; files that we ship.

A power cut between two system calls must leave the old file or the new one, never half of
one, so everything goes to a temporary name in the same folder, is flushed to the disk and
then renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from t2i_hpc.common.errors import UserError

_LOCK_SECONDS = 10.0  # many times what an append takes
_GIT_SECONDS = 20.0
_HERE = Path(__file__)
_PACKAGE = _HERE.resolve().parent.parent
_PLACES = {"configs": "configs", "shards_demo": "shards/demo"}


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under `path` only when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file's content atomically."""
    with atomic_writer(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """Replace the file's content atomically, in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace the file's content atomically with indented, key-sorted JSON."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def append_json_line(
    path: Path, value: Any, unless: Callable[[dict[str, Any]], bool] | None = None
) -> bool:
    """Append one compact JSON object as a line; return whether it was.

    The file is locked meanwhile: processes on several nodes that append at the same time would
    overwrite each other on a network file system, which has no atomic append. Where there are no
    locks either, this is a single write. A line that a power cut or a full disk left half written
    is ended first, and spoils no other.

    Args:
        path: the file; made where it is not there.
        value: the object.
        unless: is asked about the lines that are there already; nothing is appended where it says
            yes to one of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n"
    with path.open("ab") as stream:
        _lock_for_a_moment(stream)
        if unless and any(unless(row) for row in read_json_lines(path)):
            return False
        stream.write((line if _ends_a_line(path) else "\n" + line).encode())
        stream.flush()
    return True


def _lock_for_a_moment(stream: IO[bytes]) -> None:
    """Lock an open file until it is closed; go without where that takes too long or is unknown."""
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                return
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return


def _ends_a_line(path: Path) -> bool:
    """Whether a file that is appended to has no half line at its end."""
    if path.stat().st_size == 0:
        return True
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a .jsonl file; a half-written last line (a power cut) is left out.

    Lines end at line feeds alone: texts may hold U+0085 or U+2028, which also end lines for Python.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):  # no JSON, or cut inside a character
            rows.append(json.loads(line.decode()))
    return rows


def size_text(count: int) -> str:
    """Return a number of bytes in words that never round to nothing: 1.2 GB, 2.5 MB, 300 bytes."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON: the identity of a configuration."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def resource(name: str) -> Path:
    """Return the folder `configs` or `shards_demo`, from the installed wheel or the checkout.

    Raises:
        UserError: neither place has it (a broken installation).
    """
    for place in (_PACKAGE / name, _PACKAGE.parent / _PLACES[name]):
        if place.is_dir():
            return place
    raise UserError(
        f"the folder {name!r} that ships with t2i_hpc is missing beside {_PACKAGE}; "
        "install the wheel again or use a complete checkout"
    )


def git(*arguments: str, file: Path = _HERE) -> str:
    """Return what git says of the checkout that `file` belongs to; "" where it belongs to none.

    A package that is installed inside the checkout of another project (in its ``.venv``, say) does
    not belong to it: its files are not tracked there.
    """
    try:
        _run_git("ls-files", "--error-unmatch", file.name, folder=file.parent)
        return _run_git(*arguments, folder=file.parent)
    except (OSError, subprocess.SubprocessError):
        return ""


def _run_git(*arguments: str, folder: Path) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=_GIT_SECONDS,
    ).stdout
