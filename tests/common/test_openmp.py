"""OpenMP's threads sleep soon while they wait, in every kind of process that is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from t2i_hpc.cluster.local_processes import rank_environment, without_launcher
from t2i_hpc.common.process import wait_briefly
from tests.support.training import environment

COMMANDS = ("train", "pretrain", "evaluate", "generate", "launch", "shards", "report", "convert")
# Stands in for torch and tells what it would find.
TORCH = """
import os
found = [os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")]
print("torch finds", *found, flush=True)
os._exit(0)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A folder whose torch tells how threads wait."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(TORCH)
    return str(tmp_path)


def started(path: str, *command: str, **settings: str) -> str:
    """Return what torch finds in a process that a person starts."""
    names = {k: v for k, v in environment().items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env={**names, "PYTHONPATH": path, **settings},
        timeout=60,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_sets_it_before_torch(path: str, command: str) -> None:
    code = f"import t2i_hpc.{command}, torch"
    assert started(path, "-c", code) == "torch finds PASSIVE 10000\n"


@pytest.mark.parametrize(
    ("module", "spins"),
    [("benchmarks.step", 10000), ("benchmarks.busy", 10000), ("tests.conftest", None)],
)
def test_benchmarks_and_tests_set_it_before_torch(
    path: str, module: str, spins: int | None
) -> None:
    found = started(path, "-c", f"import {module}; import torch")
    assert found == f"torch finds PASSIVE {spins}\n"


def test_what_a_person_says_stays(path: str) -> None:
    said = {"OMP_WAIT_POLICY": "ACTIVE"}
    assert started(path, "-m", "t2i_hpc.train", **said) == "torch finds ACTIVE None\n"
    for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        own = {name: "1000"}
        wait_briefly(own)
        assert own == {name: "1000"}


def test_ranks_and_evaluations_that_are_started_inherit_it() -> None:
    assert rank_environment(0, 2, 1234)["OMP_WAIT_POLICY"] == os.environ["OMP_WAIT_POLICY"]
    assert without_launcher(os.environ)["OMP_WAIT_POLICY"] == os.environ["OMP_WAIT_POLICY"]


def test_this_process_waits_passively() -> None:
    assert torch.get_num_threads() >= 1
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
