"""Where the files that ship with the project lie: in the wheel or in the checkout."""

from __future__ import annotations

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
