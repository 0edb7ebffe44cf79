"""Doors whose words without a key are runs: ``python -m t2i_hpc.status runs/a runs/b``."""

from __future__ import annotations

from typing import TypeVar

from t2i_hpc.config.compose import quoted
from t2i_hpc.config.door import Door

ConfigT = TypeVar("ConfigT")


class RunsDoor(Door[ConfigT]):
    """A door that takes any number of runs, with or without ``run=``."""

    def _open(self, words: list[str]) -> int:
        return super()._open(gather_runs(words))


def gather_runs(words: list[str]) -> list[str]:
    """Put all words without a key, and the value of ``run=PATH``, into one list setting."""
    runs, others, follows = list[str](), list[str](), False
    for word in words:
        plain = "=" not in word and not word.startswith("-")
        if plain and not follows:
            runs.append(word)
        elif word.startswith("run=") and not word.startswith("run=["):
            runs.append(word.removeprefix("run="))
        else:
            others.append(word)
        follows = word == "--config-dir"
    return [*others, f"run=[{','.join(map(quoted, runs))}]"] if runs else others
