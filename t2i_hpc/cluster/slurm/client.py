"""How often Slurm is asked about jobs that a person waits for; sites lock accounts for more.

Slurm's own command-line clients: run with a time limit, read with distrust.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from dataclasses import dataclass

from t2i_hpc.common.errors import ClusterError


@dataclass(frozen=True)
class Pace:
    """Seconds between two questions: the first ones, the longest, and how they grow."""

    first: float = 10.0
    longest: float = 60.0
    growth: float = 1.5


PACE = Pace()


class Polling:
    """Says when to ask again: soon after news, then less and less often.

    Args:
        pace: the intervals; :data:`PACE` by default.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or PACE
        self._interval, self._due = self._pace.first, 0.0

    def is_due(self) -> bool:
        """Whether it is time to ask."""
        return time.monotonic() >= self._due

    def asked(self, *, news: bool) -> None:
        """Note that Slurm was asked, and whether the answer was another one than before."""
        grown = min(self._interval * self._pace.growth, self._pace.longest)
        self._interval = self._pace.first if news else grown
        self._due = time.monotonic() + self._interval


# What a person sets for all of Slurm's clients. Every other SLURM_ variable tells of the job that
# this process may be in.
SETTINGS_OF_PEOPLE = frozenset({"SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS"})

_SILENT = ("Unable to contact slurm controller", "timed out on send/recv", "Zero Bytes were")
_LOG = logging.getLogger("t2i_hpc")
_PATIENCE_SECONDS = 60.0
_WHOLE_LISTS = {"SLURM_BITSTR_LEN": "0"}  # else a long list of array elements ends in "..."
_CLUSTER_LINE = "CLUSTER:"  # one cluster's heading, with SLURM_CLUSTERS also under --noheader


class NoAnswerError(ClusterError):
    """Slurm's controller does not answer, so nothing is known."""


def has_client(name: str) -> bool:
    """Return whether a client of Slurm, e.g. ``sacct``, is installed here."""
    return shutil.which(name) is not None


def run_client(
    name: str, *words: str, script: str = "", patience: float = _PATIENCE_SECONDS
) -> str:
    """Run a client of Slurm; return what it prints, without the last line's end.

    Args:
        name: of the client.
        words: its arguments.
        script: what it reads from standard input.
        patience: seconds to wait for an answer.

    Raises:
        ClusterError: it is not installed, refuses, or gives no answer.
    """
    if not has_client(name):
        raise ClusterError(
            f"{name} is not installed here: run this on a machine of the cluster that submits jobs "
            "(a login node), or take cluster=local"
        )
    try:
        done = subprocess.run(
            [name, *words],
            capture_output=True,
            text=True,
            errors="replace",
            input=script,
            timeout=patience,
            check=False,
            env={**os.environ, **_WHOLE_LISTS},
        )
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(
            f"{name} gave no answer for {patience:.0f} s: Slurm's controller is down or "
            "overloaded (see scontrol ping); try again later"
        ) from error
    if done.returncode and "configuration source" in done.stderr:
        raise ClusterError(
            f"{name} finds no configuration of Slurm here: set SLURM_CONF, run this on a login "
            "node, or take cluster=local"
        )
    if done.returncode and any(sign in done.stderr for sign in _SILENT):
        raise NoAnswerError(
            f"{name} got no answer ({_reason(done.stderr, name)}): Slurm's controller is down or "
            "overloaded (see scontrol ping); try again later"
        )
    if done.returncode:
        raise ClusterError(f"{name} refused: {_reason(done.stderr, name)}")
    return done.stdout.rstrip("\n")


def split_rows(text: str, fields: int) -> tuple[list[list[str]], list[str]]:
    """Read lines of ``a|b|c``: return the rows of that many fields, and the lines of other forms.

    Blank lines and the headings of clusters (``CLUSTER: name``) are passed over.
    """
    rows, strange = list[list[str]](), list[str]()
    for line in text.split("\n"):
        row = line.split("|", fields - 1)
        if len(row) == fields:
            rows.append(row)
        elif line.strip() and not line.startswith(_CLUSTER_LINE):
            strange.append(line)
    return rows, strange


def warn_of(name: str, strange: list[str]) -> None:
    """Warn of lines whose form is unknown, with the first of them."""
    if strange:
        _LOG.warning(
            "%s printed %d lines of an unknown form, the first is: %.200s",
            name,
            len(strange),
            strange[0],
        )


def _reason(text: str, name: str) -> str:
    lines = [line.removeprefix(f"{name}: ").strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line) or "without a word"
