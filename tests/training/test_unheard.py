"""A training continues when nobody reads what it prints; a closed terminal lets it save."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_hpc.common.errors import STOPPED
from t2i_hpc.common.process import STOP_SIGNALS, handled_signals
from t2i_hpc.runs.layout import list_checkpoints
from tests.support.data import make_shards
from tests.support.training import TINY, environment, only_run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), count=24, size=80)


def start(shards: Path, runs: Path, output: int, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a launcher with a rank, whose standard output is a file that is open."""
    arguments = ("task=train", f"data.path={shards}", f"runs={runs}", *TINY, *arguments)
    command = [sys.executable, "-m", "t2i_hpc.launch", *arguments]
    return subprocess.Popen(
        command, stdout=output, stderr=subprocess.PIPE, env=environment(), start_new_session=True
    )


@pytest.mark.parametrize("where", ["a pipe", "a full disk"])
def test_a_training_continues_when_nobody_reads(shards: Path, tmp_path: Path, where: str) -> None:
    if where == "a pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open("/dev/full", os.O_WRONLY)
    process = start(shards, tmp_path, write, "engine.images=8")
    os.close(write)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors
    assert max(list_checkpoints(only_run(tmp_path))) == 8


def test_a_closed_terminal_saves(shards: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(shards, tmp_path, theirs, "engine.images=1000000")
    os.close(theirs)
    shown = b""
    while b"step 3" not in shown:
        shown += os.read(ours, 4096)  # ends with an error when the training does
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == STOPPED
    assert max(list_checkpoints(only_run(tmp_path))) >= 12


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert set(STOP_SIGNALS) - set(handled_signals()) == {signal.SIGHUP}
    finally:
        signal.signal(signal.SIGHUP, before)
