"""The settings that make a run what it is, and those in which runs differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

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
