"""No silent hang when a rank is lost: the others exit and name it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from t2i_hpc.common.errors import LOST_RANK, USER_ERROR
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.common.seeds import noise
from t2i_hpc.training import loop
from tests.support.preloaded import ENDLESS, Nursery, Rank, start_endless
from tests.support.training import TINY, environment


def said(ranks: list[Rank]) -> list[str]:
    """Return the sentences about lost ranks, of all ranks, and fail for traces."""
    lines = "\n".join(rank.log.read_text() for rank in ranks).splitlines()
    assert not any(line.startswith("Traceback") for line in lines), lines
    return [line for line in lines if line.startswith("t2i_hpc: rank")]


@pytest.mark.parametrize("number", [1, 0])
def test_a_killed_rank_is_named(number: int, home: Nursery, shards: Path, tmp_path: Path) -> None:
    ranks = start_endless(home, shards, tmp_path)
    ranks[number].send(signal.SIGKILL)
    expected = [LOST_RANK if rank is not ranks[number] else -signal.SIGKILL for rank in ranks]
    assert [rank.wait(20) for rank in ranks] == expected
    sentences = said(ranks)
    assert len(sentences) == (1 if number else 2)  # rank 0 speaks for all while there is one
    for sentence in sentences:
        assert sentence.startswith(f"t2i_hpc: rank {number} (")
        assert f"pid {ranks[number].pid}), last at step" in sentence
        assert "died; the checkpoints are intact: the same command resumes" in sentence


@pytest.mark.parametrize("number", [1, 0])
def test_a_stopped_rank_is_named(number: int, home: Nursery, shards: Path, tmp_path: Path) -> None:
    ranks = start_endless(home, shards, tmp_path)
    ranks[number].send(signal.SIGSTOP)
    others = [rank for rank in ranks if rank is not ranks[number]]
    try:
        assert [rank.wait(40) for rank in others] == 2 * [LOST_RANK]
    finally:
        ranks[number].send(signal.SIGKILL)
    ranks[number].wait()
    assert f"rank {number} (" in said(ranks)[0]
    assert "gave no sign of life for 10 s" in said(ranks)[0]


def hang_in_step_4() -> None:
    """Let this process sleep for good where the fourth step draws its noise."""

    def hanging(seed: int, purpose: str, positions: Sequence[int], width: int) -> Tensor:
        if purpose == "noise" and 18 in positions:
            time.sleep(3600)
        return noise(seed, purpose, positions, width)

    vars(loop)["noise"] = hanging


def test_a_hanging_rank_is_named_after_the_timeout(
    home: Nursery, shards: Path, tmp_path: Path
) -> None:
    ranks = start_endless(home, shards, tmp_path, "engine.timeout=4", before={0: hang_in_step_4})
    assert [rank.wait(40) for rank in ranks] == 3 * [LOST_RANK]
    (sentence,) = said(ranks)
    assert sentence.startswith("t2i_hpc: rank 0 (")
    assert "last at step 4, waiting for data (" in sentence
    assert "made no progress for 4 s (engine.timeout)" in sentence


def test_an_error_of_one_rank_is_told_by_the_others(
    home: Nursery, shards: Path, tmp_path: Path
) -> None:
    ranks = start_endless(home, shards, tmp_path, "data.workers=1")
    victim = ranks[1]
    children = Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert [rank.wait(40) for rank in ranks] == [LOST_RANK, USER_ERROR, LOST_RANK]
    assert "a loader process (pid" in victim.log.read_text()
    (sentence,) = said(ranks)
    assert sentence.startswith("t2i_hpc: rank 1 (")
    assert "exited at step" in sentence
    assert f"a loader process (pid {children[0]}) died of SIGKILL" in sentence


def test_the_launcher_tells_which_rank_was_killed(shards: Path, tmp_path: Path) -> None:
    arguments = ["cluster.processes=2", f"data.path={shards}", f"runs={tmp_path}", *TINY, *ENDLESS]
    command = [sys.executable, "-m", "t2i_hpc.launch", "task=train", *arguments]
    launcher = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    end = time.monotonic() + 90
    while not any(read_json_lines(path) for path in tmp_path.glob("*/metrics.jsonl")):
        assert time.monotonic() < end
        time.sleep(0.05)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == LOST_RANK, output
    assert f"t2i_hpc: rank 1 (pid {children[1]}) was ended by signal 9 (Killed)" in output
    assert ", last at " in output
