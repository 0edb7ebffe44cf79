"""Where what lies in a run directory that more than one room looks for."""

from __future__ import annotations

from pathlib import Path


def folder_of(run: Path, images: int) -> Path:
    """Return where the checkpoint of that many images lies."""
    return run / "checkpoints" / f"{images:010d}"


def list_checkpoints(run: Path) -> list[int]:
    """Return the numbers of images of the checkpoints that are there, ascending."""
    names = [path.name for path in (run / "checkpoints").glob("[0-9]*")]
    return sorted(int(name) for name in names if name.isdecimal() and name == f"{int(name):010d}")


def newest_images(run: Path) -> int | None:
    """Return the number of images of the newest checkpoint; None where there is none."""
    return max(list_checkpoints(run), default=None)
