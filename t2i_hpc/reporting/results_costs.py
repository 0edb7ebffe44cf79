"""The settings that make a run what it is, and those in which runs differ.

What runs cost: counted once a run and kept beside it, in ``RUN/cost.json``.

Counts what a run's training costs; its networks are built anew, with whatever weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from t2i_hpc.common.files import sha256_of_json, write_json
from t2i_hpc.config.compose import from_yaml
from t2i_hpc.config.fields import entries
from t2i_hpc.config.tasks import TrainConfig


def read_settings(run: Path) -> dict[str, str]:
    """Return the settings that make a run what it is; none of one that has not begun."""
    if not (run / "config.yaml").is_file():
        return {}
    config = from_yaml(run / "config.yaml", TrainConfig)
    return {entry.key: str(entry.value) for entry in entries(config) if entry.meaning.identity}


def varying(settings: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values are not the same in all runs that have begun."""
    known = [each for each in settings if each]
    keys = dict.fromkeys(key for each in known for key in each)
    return [key for key in keys if len({each.get(key, "") for each in known}) > 1]


FILE_NAME = "cost.json"


@dataclass(frozen=True)
class Cost:
    """What does not depend on where a run is trained.

    Attributes:
        generator_parameters: of the network that draws; None where none does.
        trained_parameters: of all networks that a step updates.
        gflop_per_image: 10⁹ floating-point operations of one training step by its images.
    """

    generator_parameters: int | None
    trained_parameters: int
    gflop_per_image: float


def read_cost(run: Path, count: Callable[[Path], Cost]) -> Cost | None:
    """Return what a run costs, counted anew where its settings are not those counted before.

    Args:
        run: the run directory.
        count: counts, for seconds to minutes.

    Returns:
        None for a run that has not begun.
    """
    settings = read_settings(run)
    if not settings:
        return None
    identity = sha256_of_json(settings)
    kept = _kept(run / FILE_NAME, identity)
    if kept is None:
        kept = count(run)
        write_json(run / FILE_NAME, {"settings": identity, **asdict(kept)})
    return kept


def _kept(path: Path, identity: str) -> Cost | None:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        return Cost(**row) if row.pop("settings") == identity else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not counted yet, or not by this version
