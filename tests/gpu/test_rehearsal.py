"""`make gpu` without a GPU: its tests, its measurements and its table, in little, so none rots."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from benchmarks import gpu, gpu_machine, gpu_sections
from benchmarks.gpu_sections import Scale
from tests.gpu import test_steps as steps

CPU = torch.device("cpu")
ROOT = Path(gpu_machine.ROOT)


def test_a_test_of_gpus_runs_on_a_cpu() -> None:
    steps.test_every_system_takes_a_step_without_a_sync("affine", CPU)


def test_steps_are_measured_in_the_order_of_worth() -> None:
    few = {"bf16+channels_last": gpu_sections.VARIANTS["bf16+channels_last"]}
    with patch.object(gpu_sections, "VARIANTS", few):
        rows = list(gpu_sections.steps(Scale.tiny(), CPU))
    assert [row.get("variant", row["what"]) for row in rows] == ["plain", "flops", *few]
    assert rows[1]["per_image"] > 1e6
    ours = rows[2]
    assert ours["images_per_second"] > 0
    assert set(ours["milliseconds"]) == {"shared", "discriminator", "penalty", "generator", "ema"}


def test_images_are_loaded() -> None:
    (row,) = gpu_sections.loader(Scale.tiny(), CPU)
    assert row["images_per_second"] > 0


def made_up(variant: str, batch: int, speed: float | None) -> gpu.Row:
    row = {"what": "step", "variant": variant, "batch": batch, "images_per_second": speed}
    if speed is None:
        return row | {"note": "does not fit into the memory"}
    parts = {"shared": 10.04, "generator": 20.0}
    return row | {"peak": 1e15, "gib": 31.5, "milliseconds": parts}


def test_the_table_says_what_was_found_and_what_was_not(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure message="m"/></testcase>'
        '<testcase classname="a" name="late"><skipped message="did not fit"/></testcase>'
        "</testsuite></testsuites>"
    )
    rows = [
        made_up("plain", 64, None),
        made_up("plain", 24, 100.0),
        {"what": "flops", "per_image": 7e11},
        made_up("bf16", 24, 350.0),
        {"what": "loader", "images_per_second": 700.0, "workers": 8, "cores": 16},
        {"what": "scoring", "variant": "float32", "images_per_second": 600.0, "images": 4096},
    ]
    found = gpu.Found(rows, ["compile: did not fit into the time"])
    text = gpu.table(found, CPU, gpu.tests_line(report), Scale())
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "plain 64 - - - - - does not fit into the memory" in lines
    assert "bf16 24 350.0 245.0 24.5% 31.5 3.50 shared 10.0, generator 20.0" in lines
    assert "loader: 700 images/s on the device with 8 workers on 16 cores, 2.00 of the" in text
    assert "30,000 would take 50 s (extrapolated)" in text
    assert "tests/gpu: 1 passed, 1 failed (a.bad), 1 skipped (did not fit)" in text
    assert "not measured: compile: did not fit into the time" in text
    assert "commit " in text
    first, second = (gpu.keep(text, tmp_path / "results", CPU) for _ in range(2))
    assert first != second
    assert first.read_text() == second.read_text() == text


def test_a_section_that_takes_too_long_keeps_what_it_has() -> None:
    expired = subprocess.TimeoutExpired("python", 5, b'{"what": "step"}\n{"what"')
    with patch.object(subprocess, "run", side_effect=expired):
        rows, note = gpu.run_section("steps", 5, [])
    assert rows == [{"what": "step"}]
    assert note == "the rest did not fit into the time"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_machine.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "make gpu needs a GPU that torch sees, and there is none here\n"


def test_wheels_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    with patch.object(gpu_machine, "_NEEDED", ("no_such_module",)):
        reason = gpu_machine.install(tmp_path / "none", tmp_path / "into")
    assert reason.startswith("no_such_module are not installed")
    assert "`make gpu-wheels`" in reason
