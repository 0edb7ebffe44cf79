"""The loop through its command: curves, pictures, bit-identical resume, stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file

from t2i_hpc.common.errors import STOPPED
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.runs.layout import list_checkpoints
from tests.support.training import TINY, environment, only_run, run_task, train_tiny


def same_files(first: Path, second: Path) -> bool:
    names = ("weights.safetensors", "optimizers.safetensors")
    pairs = [(load_file(first / name), load_file(second / name)) for name in names]
    return all(
        a.keys() == b.keys() and all(bool((a[key] == b[key]).all()) for key in a) for a, b in pairs
    )


@pytest.fixture(scope="module")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps without a stop."""
    runs = tmp_path_factory.mktemp("straight")
    train_tiny(shards, runs, "engine.images=32", "engine.samples_every_images=16")
    return only_run(runs)


def test_a_run_leaves_everything_that_is_promised(straight: Path) -> None:
    rows = read_json_lines(straight / "metrics.jsonl")
    assert [row["images"] for row in rows] == [4 * step for step in range(1, 9)]
    assert set(rows[0]) == {
        "images",
        "step",
        "seconds",
        "images_per_second",
        "gradient_norms",
        "learning_rates",
        "milliseconds",
        "memory_gigabytes",
        "data_wait",
        "losses",
    }
    assert {"caption_sensitivity", "real_sign"} <= {*rows[3]["samples"]}
    assert [row["images"] for row in rows if "samples" in row] == [16, 32]
    assert {path.name for path in (straight / "samples").glob("*.png")} == {
        f"{images:010d}.png" for images in (0, 16, 32)
    }
    assert len(list((straight / "masks").glob("*.png"))) == 3
    assert len(json.loads((straight / "samples" / "captions.json").read_text())) == 2
    assert list((straight / "tensorboard").iterdir())
    assert list_checkpoints(straight) == [0, 32]


def test_a_resumed_run_is_equal_to_the_bit(straight: Path, shards: Path, tmp_path: Path) -> None:
    train_tiny(shards, tmp_path, "engine.images=12")
    again = train_tiny(shards, tmp_path, "engine.images=32")
    assert "resuming at step 3, 12 images seen" in again.stdout
    run = only_run(tmp_path)
    assert run.name == straight.name
    name = f"checkpoints/{32:010d}"
    assert same_files(run / name, straight / name)
    ours, theirs = (read_json_lines(path / "metrics.jsonl") for path in (run, straight))
    assert [row["losses"] for row in ours] == [row["losses"] for row in theirs]


def test_another_seed_is_another_training(straight: Path, shards: Path, tmp_path: Path) -> None:
    train_tiny(shards, tmp_path, "engine.images=32", "seed=2")
    name = f"checkpoints/{32:010d}"
    assert not same_files(only_run(tmp_path) / name, straight / name)


def test_a_finished_run_has_nothing_to_do(straight: Path, shards: Path) -> None:
    before = (straight / "metrics.jsonl").read_bytes()
    done = train_tiny(shards, straight.parent, "engine.images=32")
    assert "done" in done.stdout
    assert (straight / "metrics.jsonl").read_bytes() == before


def start(
    shards: Path, runs: Path, *arguments: str, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "t2i_hpc.train",
            f"data.path={shards}",
            f"runs={runs}",
            *TINY,
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), **(variables or {})},
    )


def wait_for_steps(runs: Path, steps: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for path in runs.glob("*/metrics.jsonl"):
            if len(read_json_lines(path)) >= steps:
                return
        time.sleep(0.05)
    raise AssertionError("no steps were made")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_same_command_resumes(
    number: signal.Signals, straight: Path, shards: Path, tmp_path: Path
) -> None:
    process = start(shards, tmp_path, "engine.images=100000")
    wait_for_steps(tmp_path, 2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED, output
    assert "saved: the same command resumes" in output
    run = only_run(tmp_path)
    (images,) = [n for n in list_checkpoints(run) if n]
    assert read_json_lines(run / "metrics.jsonl")[-1]["images"] == images
    if images < 32:
        train_tiny(shards, tmp_path, "engine.images=32")
        assert same_files(run / f"checkpoints/{32:010d}", straight / f"checkpoints/{32:010d}")


SCONTROL = """#!/bin/sh
echo "$*" >> {calls}
echo "JobId=7 JobState=COMPLETING Reason=TimeLimit Restarts=0 WorkDir=/tmp"
"""


def test_a_training_that_slurm_ends_requeues_its_job(shards: Path, tmp_path: Path) -> None:
    """As where the batch script was killed, so that nobody else does."""
    calls, scontrol = tmp_path / "calls", tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(SCONTROL.format(calls=calls))
    scontrol.chmod(0o755)
    variables = {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_END_TIME": "4000000000",
    }
    runs = tmp_path / "runs"
    process = start(shards, runs, "engine.images=100000", variables=variables)
    wait_for_steps(runs, 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED, output
    assert calls.read_text().splitlines()[-1] == "requeue 7"
    assert "job 7 is requeued" in output


def test_kill_9_loses_only_what_was_not_saved(straight: Path, shards: Path, tmp_path: Path) -> None:
    process = start(shards, tmp_path, "engine.images=100000", "engine.checkpoint.every_images=8")
    wait_for_steps(tmp_path, 5)
    process.kill()
    process.communicate()
    run = only_run(tmp_path)
    saved = list_checkpoints(run)[-1]
    assert saved >= 8
    if saved < 32:
        train_tiny(shards, tmp_path, "engine.images=32")
        assert same_files(run / f"checkpoints/{32:010d}", straight / f"checkpoints/{32:010d}")
        rows = [row["images"] for row in read_json_lines(run / "metrics.jsonl")]
        assert rows == sorted(set(rows))


def test_a_time_limit_counts_all_sessions(shards: Path, tmp_path: Path) -> None:
    train_tiny(shards, tmp_path, "engine.minutes=0.02")
    first = list_checkpoints(only_run(tmp_path))[-1]
    assert first > 0
    train_tiny(shards, tmp_path, "engine.minutes=0.02")
    assert list_checkpoints(only_run(tmp_path))[-1] == first
    train_tiny(shards, tmp_path, "engine.minutes=0.04")
    assert list_checkpoints(only_run(tmp_path))[-1] > first


def test_a_diverged_run_stops_with_advice(shards: Path, tmp_path: Path) -> None:
    done = run_task(
        "train",
        f"data.path={shards}",
        f"runs={tmp_path}",
        *TINY,
        "engine.images=400",
        "system.optimizer.discriminator_learning_rate=1e30",
    )
    assert done.returncode == 2
    assert "is not finite" in done.stderr
    assert "lower a learning rate" in done.stderr
