"""Several ranks on this machine: exit codes, signals, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from t2i_hpc.cluster.local_processes import free_port, rank_environment

LAUNCH = """
import sys
from t2i_hpc.cluster import local_processes as local
real = local.subprocess.Popen
script = sys.argv[1]
local.subprocess.Popen = lambda command, **rest: real([sys.executable, "-c", script], **rest)
sys.exit(local.run_ranks("train", [], 2))
"""


def launch(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, script], stdout=subprocess.PIPE, text=True
    )


def test_ranks_know_their_place() -> None:
    environment = rank_environment(1, 3, 1234)
    assert environment["RANK"] == environment["LOCAL_RANK"] == "1"
    assert environment["WORLD_SIZE"] == "3"
    assert environment["MASTER_PORT"] == "1234"
    assert free_port() > 1024


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("75", 75)])
def test_the_exit_code_is_the_ranks(code: str, expected: int) -> None:
    process = launch(f"raise SystemExit({code})")
    assert process.wait(timeout=60) == expected


def test_one_dead_rank_ends_the_others(tmp_path: Path) -> None:
    script = (
        "import os, sys, time, pathlib\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(str(os.getpid()))\n"
        "sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(300)\n"
    )
    process = launch(script)
    assert process.wait(timeout=60) == 3
    survivor = int((tmp_path / "0").read_text())
    assert not Path(f"/proc/{survivor}").exists()


def test_signals_are_passed_on(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        "time.sleep(300)\n"
    )
    process = launch(script)
    end = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == 75
