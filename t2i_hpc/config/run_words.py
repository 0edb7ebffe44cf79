"""Doors whose words without a key are runs: ``python -m t2i_hpc.status runs/a runs/b``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TypeVar

from t2i_hpc.config.compose import quoted
from t2i_hpc.config.door import Door

ConfigT = TypeVar("ConfigT")


class RunsDoor(Door[ConfigT]):
    """A door that takes any number of runs, with or without ``run=``."""

    def _open(self, words: list[str]) -> int:
        assert is_dataclass(self.config)
        return super()._open(gather_runs(words, [each.name for each in fields(self.config)]))


def is_path(word: str, keys: Collection[str]) -> bool:
    """Return whether a word names a path and no setting, as runs/a does, and lr=0.1/a if there."""
    if word.startswith("-"):
        return False
    key, equals, _ = word.partition("=")
    place = Path(word)
    there = place.exists() or (len(place.parts) > 1 and place.parent.is_dir())
    return not equals or (key not in keys and there)


def gather_runs(words: list[str], keys: Collection[str] = ()) -> list[str]:
    """Put all words that are paths, and the value of ``run=PATH``, into one list setting.

    Args:
        words: the command line.
        keys: the settings of the command.
    """
    runs, others, follows = list[str](), list[str](), False
    for word in words:
        if not follows and is_path(word, keys):
            runs.append(word)
        elif word.startswith("run=") and not word.startswith("run=["):
            runs.append(word.removeprefix("run="))
        else:
            others.append(word)
        follows = word == "--config-dir"
    return [*others, f"run=[{','.join(map(quoted, runs))}]"] if runs else others
