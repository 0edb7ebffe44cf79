"""Folders with a ``%`` in their path, under a name that Slurm and submitit take literally.

Both read ``%j`` and the like in a path as a pattern, submitit wherever it stands: the log of a run
below ``50%j`` would lie in another folder, ``100%a`` is no path at all. The files of such a run's
jobs are written through a link to their folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from t2i_hpc.common.errors import ClusterError


def without_percent(folder: Path) -> Path:
    """Return an absolute folder, or the link that stands for it where its path has a ``%``."""
    if "%" not in str(folder):
        return folder
    above = next(path for path in folder.parents if "%" not in str(path))
    return above / f".t2i_hpc-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def link_without_percent(folder: Path) -> None:
    """Make the link that :func:`without_percent` names, and the folder, if there is to be one.

    Raises:
        ClusterError: the folder in which it would lie cannot be written.
    """
    link = without_percent(folder)
    if link == folder:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            return
        link.symlink_to(folder, target_is_directory=True)
    except OSError as error:
        raise ClusterError(
            f"{folder} has a % in its path, which Slurm takes for a pattern, and {link} cannot be "
            f"made to stand for it ({error.strerror}): rename the folder"
        ) from error
