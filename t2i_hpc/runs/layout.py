"""The folders of a run's checkpoints, and how they come and go without leaving a half one.

In ``checkpoints/`` are ``<images seen, ten digits>`` and, only while something is under way or
after a session was killed, ``.<images>.tmp`` (being written) and ``.deleted-<images>`` (being
deleted). What was found damaged is renamed to ``damaged-<images>``, ``damaged-<images>-2`` …
and stays for a person to inspect.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

from t2i_hpc.common.files import fsync_folder

_DAMAGED = "damaged-"
_DELETED = ".deleted-"
EXPORTED = "config.json"  # what makes a folder an exported one


def folder_of(run: Path, images: int) -> Path:
    """Return the folder of the checkpoint of that many images."""
    return run / "checkpoints" / f"{images:010d}"


def list_checkpoints(run: Path) -> list[int]:
    """Return the numbers of images of the checkpoints that are there, ascending."""
    names = [path.name for path in (run / "checkpoints").glob("[0-9]*")]
    return sorted(int(name) for name in names if name.isdecimal() and name == f"{int(name):010d}")


def is_exported(folder: Path) -> bool:
    """Whether a folder is an exported one, not a run directory."""
    return (folder / EXPORTED).is_file() and not (folder / "config.yaml").is_file()


def not_of_exported(folder: Path) -> str:
    """Say what to do where a run is needed and an exported folder is named; "" of others."""
    if not is_exported(folder):
        return ""
    try:
        run = json.loads((folder / EXPORTED).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # anyone may call a file so
    return (
        f"{folder} was exported from the run {run}, and has neither its curves nor its other "
        "networks: name that run; generate, evaluate, serve and load_run take the folder"
    )


def newest_images(run: Path) -> int | None:
    """Return the number of images of the newest checkpoint; None where there is none."""
    return max(list_checkpoints(run), default=None)


def temporary_of(folder: Path) -> Path:
    """Return the folder that a checkpoint has while it is written."""
    return folder.with_name(f".{folder.name}.tmp")


def retire(folder: Path) -> Path:
    """Rename a checkpoint, which is none from then on; return what is left to delete."""
    leaving = folder.with_name(_DELETED + folder.name)
    shutil.rmtree(leaving, ignore_errors=True)
    folder.rename(leaving)
    fsync_folder(folder.parent)
    return leaving


def remove(folder: Path) -> None:
    """Delete a checkpoint; one that is half deleted is no checkpoint."""
    shutil.rmtree(retire(folder))


def clear_leftovers(run: Path) -> None:
    """Delete what a killed session left half written or half deleted."""
    for pattern in (".[0-9]*.tmp", f"{_DELETED}*"):
        for folder in (run / "checkpoints").glob(pattern):
            shutil.rmtree(folder)


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, which is never deleted; return its new place."""
    for number in itertools.count(1):
        suffix = "" if number == 1 else f"-{number}"
        aside = folder.with_name(f"{_DAMAGED}{folder.name}{suffix}")
        if not aside.exists():
            break
    folder.rename(aside)
    fsync_folder(folder.parent)
    return aside


def damaged_checkpoints(run: Path) -> list[Path]:
    """Return the damaged checkpoints that were set aside."""
    return sorted((run / "checkpoints").glob(f"{_DAMAGED}*"))
