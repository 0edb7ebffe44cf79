"""What a run says of itself in metrics.jsonl, in its log line and in a torch trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.data.loader import ReadCounts
from t2i_hpc.training import session
from t2i_hpc.training.checks import check_engine
from t2i_hpc.training.metrics_log import Arithmetic, Measured, ReadMeter
from t2i_hpc.training.precision import NonFiniteWatch
from t2i_hpc.training.profiler import profiled_steps
from t2i_hpc.training.progress import Status
from tests.support.toys import Toy
from tests.support.training import only_run, train_tiny
from tests.systems.tiny import configured


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
        assert set(row["gradient_norms"]) == {
            "discriminator/discriminator",
            "penalty/discriminator",
            "generator/generator",
        }
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


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 NVL", "tf32", 417.5),
        ("NVIDIA H100 PCIe", "fp32", 51.0),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA A100-PCIE-40GB", "tf32", 156.0),
        ("NVIDIA L40", "bf16", 181.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA RTX A6000", "bf16", 154.8),
        ("Tesla V100-PCIE-16GB", "fp16", 112.0),
        ("Tesla T4", "fp16", 65.0),
        ("NVIDIA RTX A4000", "bf16", None),  # no A40
    ],
)
def test_the_peak_of_a_card_is_found_by_torch_s_name(
    name: str, precision: str, expected: float | None
) -> None:
    with patch.object(torch.cuda, "get_device_name", return_value=name):
        found = Arithmetic.of(None, torch.device("cuda"), precision, 1).peak
    assert found == (None if expected is None else pytest.approx(1e12 * expected))


def test_operations_are_counted_at_the_start_on_a_gpu() -> None:
    """A phase that runs every second step counts half; other ranks and CPUs count nothing."""
    data = cast(Any, SimpleNamespace(vocabulary=SimpleNamespace(size=20)))
    always, lazily = (
        configured("affine", "engine.device=auto", f"system.penalty_every={k}") for k in (1, 2)
    )
    assert session._flops(configured("affine"), data) is None
    with patch.object(session, "_has_gpu", return_value=True):
        whole, less = (session._flops(config, data) for config in (always, lazily))
    assert whole is not None
    assert less is not None
    assert 0.5 * whole < less < 0.95 * whole


def test_norms_are_of_whole_modules() -> None:
    watch = NonFiniteWatch()
    for step in (1, 2):
        parts = {"a.x": torch.tensor([3.0 * step]), "a.y": torch.tensor([0.0, 4.0 * step])}
        watch.record(step, "p", {"l": torch.tensor(9.0)}, parts | {"b.x": torch.tensor([2.0])})
    assert watch.gradient_norms(2) == pytest.approx({"p/a": 10.0, "p/b": 2.0})
    assert watch.pop_first(3) is None


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


def test_what_comes_from_servers_is_shown() -> None:
    counts = iter([ReadCounts(), ReadCounts(90, 10, 5000), ReadCounts(190, 10, 5000)])
    meter = ReadMeter(lambda: next(counts))
    fetched, found = meter.read()
    assert fetched is not None and fetched > 0
    assert found == 0.9
    assert meter.read() == (0.0, 1.0)
    assert ReadMeter(ReadCounts).read() == (None, 1.0)  # data in a folder
    row = Measured({}, 3.0, 0.1, 0.5, fetched=2.5e6, found=0.98765).row()
    assert (row["fetched_megabytes_per_second"], row["cache_hits"]) == (2.5, 0.9877)
    assert "cache_hits" not in Measured({}, 3.0, 0.1, 0.5).row()

    def line(wait: float, fetched: float | None, found: float) -> str:
        return Status(12, 288, 91.44, wait, {}, 0.5, None, fetched=fetched, found=found).line()

    assert line(0.02, 2.5e6, 0.999).rstrip().endswith("data wait 2%, 2.5 MB/s, cache 99.9%")
    assert "cache 50.0% (raise data.connections or data.prefetch)" in line(0.5, 2.5e6, 0.5)
    assert line(0.5, None, 1.0).rstrip().endswith("data wait 50% (raise data.workers)")
