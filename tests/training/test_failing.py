"""A training that fails ends at once: no loader process and no missing reader holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t2i_hpc.cluster.local_processes import BackgroundEvaluations
from t2i_hpc.common.process import STOP_SIGNALS
from tests.support.data import make_shards
from tests.support.training import TINY, environment

FAILING = """
import sys
from t2i_hpc import train
from t2i_hpc.common.errors import RunError
from t2i_hpc.training.world import raise_together
from t2i_hpc.training.metrics_log import MetricsLog
from t2i_hpc.training.world import World
import torch

def fail(*_):
    raise_together(World(0, 1, 0, 1, torch.device("cpu")), {error}("no step more"))

MetricsLog.add = fail
sys.exit(train.COMMAND.main(sys.argv[1:]))
"""
EXITING = """
import threading, time
from t2i_hpc.common.process import exit_at_once
threading.Thread(target=exit_at_once, args=(76, "a rank is lost")).start()
time.sleep(60)
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), count=24, size=80)


@pytest.mark.parametrize(("error", "code"), [("RuntimeError", 1), ("RunError", 2)])
def test_loader_processes_do_not_outlive_an_error(
    shards: Path, tmp_path: Path, error: str, code: int
) -> None:
    arguments = (*TINY, f"data.path={shards}", f"runs={tmp_path}", "data.workers=2")
    command = [sys.executable, "-c", FAILING.format(error=error), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=90, env=environment()
    )
    assert done.returncode == code, done.stderr
    assert "no step more" in done.stderr


def test_an_exit_needs_no_reader() -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([sys.executable, "-c", EXITING], stdout=write, stderr=write)
    os.close(write)
    assert process.wait(timeout=50) == 76


def test_a_background_evaluation_hears_that_it_is_to_end(tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        beside = BackgroundEvaluations(tmp_path, ())
        beside.start(0)
        while beside._process is None:
            time.sleep(0.01)
        status = Path(f"/proc/{beside._process.pid}/status").read_text()
        blocked = int(next(line for line in status.splitlines() if "SigBlk" in line).split()[1], 16)
        assert not any(blocked & 1 << (number - 1) for number in STOP_SIGNALS)
        beside.close(print)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
