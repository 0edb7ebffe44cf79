"""Slurm's own command-line clients, run with patience and errors that a person can act on."""

from __future__ import annotations

import shutil
import subprocess

from t2i_hpc.common.errors import ClusterError

_PATIENCE_SECONDS = 60.0


def has_client(name: str) -> bool:
    """Return whether a client of Slurm, e.g. ``sacct``, is installed here."""
    return shutil.which(name) is not None


def run_client(name: str, *words: str) -> str:
    """Run a client of Slurm; return what it prints, without the last line's end.

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
            [name, *words], capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"{name} gave no answer for {_PATIENCE_SECONDS:.0f} s: Slurm's controller is down or "
            "overloaded (see scontrol ping); try again later"
        ) from error
    if done.returncode and "configuration source" in done.stderr:
        raise ClusterError(
            f"{name} finds no configuration of Slurm here: set SLURM_CONF, run this on a login "
            "node, or take cluster=local"
        )
    if done.returncode:
        raise ClusterError(f"{name} refused: {_reason(done.stderr, name)}")
    return done.stdout.rstrip("\n")


def _reason(text: str, name: str) -> str:
    lines = [line.removeprefix(f"{name}: ").strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line) or "without a word"
