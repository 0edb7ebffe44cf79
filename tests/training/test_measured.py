"""What a run says of itself in metrics.jsonl, in its log line and in a torch trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training.checks import check_engine
from t2i_hpc.training.metrics_log import Arithmetic, Measured
from t2i_hpc.training.profiler import profiled_steps
from t2i_hpc.training.progress import Status
from tests.support.toys import Toy
from tests.support.training import only_run, train_tiny


def test_a_run_measures_its_phases_and_traces_its_steps(shards: Path, tmp_path: Path) -> None:
    done = train_tiny(
        shards,
        tmp_path,
        "engine.images=16",
        "engine.profile=[2,3]",
        "engine.schedule.warmup_images=16",
    )
    run = only_run(tmp_path)
    rows = read_json_lines(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        parts = row["milliseconds"]
        assert list(parts) == sorted(parts)
        assert set(parts) == {"shared", "discriminator", "penalty", "generator", "ema"}
        assert all(took >= 0 for took in parts.values())
    rates = [row["learning_rates"]["generator"] for row in rows]
    assert rates == sorted(rates)
    assert rates[0] < rates[3]
    trace = run / "profile" / "steps-2-3.json.gz"
    assert f"trace of steps 2-3: {trace}" in done.stdout
    names = {
        event.get("name")
        for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    }
    assert {"shared", "generator", "penalty", "aten::convolution"} <= names


def test_a_speed_in_images_is_one_in_operations() -> None:
    known = Arithmetic(flops=2e12, peak=1e14, devices=4)
    assert known.teraflops(100.0) == pytest.approx(50.0)
    assert known.mfu(100.0) == pytest.approx(0.5)
    assert Arithmetic(2e12).mfu(100.0) is None
    assert Arithmetic(None, 1e14).teraflops(100.0) is None
    assert Arithmetic.of(2e12, torch.device("cpu"), "fp32", 1) == Arithmetic(2e12, None, 1)


def test_what_is_not_known_is_left_out() -> None:
    row = Measured({"a/b": 1.0}, 3.0, 0.1, 0.5).row()
    assert set(row) == {"losses", "images_per_second", "data_wait", "memory_gigabytes"}
    full = Measured({}, 3.0, 0.1, 0.5, 41.23456, 0.41234, {"a": 1.23456}, {"a/b": 2.0}, {"b": 1e-4})
    assert full.row()["teraflops_per_device"] == 41.23
    assert full.row()["mfu"] == 0.4123
    curves = dict(full.curves())
    assert curves["gradient_norm/a/b"] == 2.0
    assert curves["learning_rate/b"] == 1e-4
    assert curves["speed/mfu"] == 0.41234


def test_the_log_line_shows_operations_where_they_are_known() -> None:
    status = Status(12, 288, 91.44, 0.0, {}, 0.5, None, 65.8, 0.21)
    assert "91.4 img/s  65.8 TFLOP/s  MFU 21%  ETA" in status.line()
    assert "91.4 img/s  ETA" in Status(12, 288, 91.44, 0.0, {}, 0.5, None).line()


def test_which_steps_are_traced() -> None:
    assert list(profiled_steps([])) == []
    assert list(profiled_steps([10, 13])) == [10, 11, 12, 13]
    assert list(profiled_steps([2])) == [11, 12]


@pytest.mark.parametrize("steps", [[3, 2], [1, 2, 3]])
def test_steps_that_are_none_are_refused(steps: list[int]) -> None:
    with pytest.raises(ConfigurationError, match=r"engine\.profile="):
        check_engine(Toy(), EngineConfig(profile=steps), 1, torch.device("cpu"))
