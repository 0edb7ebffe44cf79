"""Where the files that ship with the project lie: in the wheel or in the checkout.

The git checkout that the code runs from, if it runs from one.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from t2i_hpc.common.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent
_PLACES = {"configs": "configs", "shards_demo": "shards/demo"}


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


_PATIENCE_SECONDS = 20.0
_HERE = Path(__file__)


def git(*words: str, file: Path = _HERE) -> str:
    """Return what git says of the checkout that `file` belongs to; "" where it belongs to none.

    A package that is installed inside the checkout of another project (in its ``.venv``, say) does
    not belong to it: its files are not tracked there.
    """
    try:
        _run("ls-files", "--error-unmatch", file.name, folder=file.parent)
        return _run(*words, folder=file.parent)
    except (OSError, subprocess.SubprocessError):
        return ""


def _run(*words: str, folder: Path) -> str:
    return subprocess.run(
        ["git", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=_PATIENCE_SECONDS,
    ).stdout
