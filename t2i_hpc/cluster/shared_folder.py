"""Whether other machines can see a folder."""

from __future__ import annotations

import re
from pathlib import Path

from t2i_hpc.common.errors import ClusterError

_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


def check_shared(folder: Path) -> None:
    """Refuse a folder that lies in this machine's memory.

    Raises:
        ClusterError: the nodes of a cluster would not see it.
    """
    kind = file_system(folder)
    if kind in _IN_MEMORY:
        raise ClusterError(
            f"{folder} lies in the memory of this machine ({kind}), where no node of the cluster "
            "sees it: take a folder on the shared file system"
        )


def file_system(folder: Path) -> str:
    """Return the kind of the file system that a folder lies on, or would; "" if unknown."""
    path = folder.resolve()
    best = kind = ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in filter(None, mounts.split("\n")):
        _, point, name, *_ = line.split(" ")
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), point)
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name  # of mounts at one point the last one counts
    return kind
