"""Costs beside results: counted once a run, and only where they are asked for."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from t2i_hpc import table, train
from t2i_hpc.common.files import append_json_line, read_json_lines
from t2i_hpc.config.compose import compose_config, to_yaml
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.reporting.costs import Cost, read_cost
from t2i_hpc.reporting.results import read_results
from t2i_hpc.reporting.results_text import to_csv, to_markdown
from tests.support.training import only_run
from tests.systems.tiny import SYSTEMS, TINY

COUNTED = Cost(1_500_000, 2_250_000, 0.125)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has logged two steps, the second of a session that took more memory."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(compose_config("train", [], TrainConfig)))
    for images, speed, memory in ((4, 10.0, 1.0), (8, 11.0, 1.25), (12, 90.0, 1.25)):
        line = {"images": images, "images_per_second": speed, "memory_gigabytes": memory}
        append_json_line(folder / "metrics.jsonl", line)
    return folder


def test_a_table_counts_what_was_trained(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"data.path={shards}", f"runs={tmp_path}", "engine.images=8")
    assert train.COMMAND.main([*SYSTEMS["df_gan"], *TINY, *words]) == 0
    run = only_run(tmp_path)
    capsys.readouterr()
    assert table.COMMAND.main([str(run), "costs=true", "format=csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    weights = load_file(run / "checkpoints" / "0000000008" / "weights.safetensors")
    sizes = {
        part: sum(value.numel() for name, value in weights.items() if name.startswith(f"{part}."))
        for part in ("generator", "discriminator")
    }
    assert int(row["generator_parameters"]) == sizes["generator"]
    assert int(row["trained_parameters"]) == sum(sizes.values())
    assert float(row["gflop_per_image"]) > 1e-4
    newest = read_json_lines(run / "metrics.jsonl")[-1]
    assert float(row["memory_gigabytes"]) == newest["memory_gigabytes"] > 0.05


def test_costs_are_counted_once(run: Path) -> None:
    counted: list[Path] = []

    def count(folder: Path) -> Cost:
        counted.append(folder)
        return COUNTED

    assert [read_cost(run, count) for _ in range(2)] == [COUNTED, COUNTED]
    assert counted == [run]
    config = compose_config("train", ["engine.images=999", "runs=elsewhere"], TrainConfig)
    (run / "config.yaml").write_text(to_yaml(config))
    read_cost(run, count)
    assert counted == [run]  # neither makes another run
    (run / "config.yaml").write_text(to_yaml(replace(config, seed=7)))
    read_cost(run, count)
    assert counted == [run, run]
    (run / "cost.json").write_text(json.dumps({"trained_parameters": 3}))
    assert read_cost(run, count) == COUNTED
    assert counted == [run, run, run]


def test_a_run_that_has_not_begun_costs_nothing_yet(tmp_path: Path) -> None:
    assert read_cost(tmp_path, lambda _: COUNTED) is None
    assert not list(tmp_path.iterdir())


def test_costs_stand_behind_the_speed(run: Path) -> None:
    head, _, row = to_markdown(read_results([str(run)], cost_of=lambda _: COUNTED)).splitlines()
    titles, cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row))
    assert titles[3:] == ["img/s", "generator (M)", "all trained (M)", "GFLOP/img", "memory (GB)"]
    assert cells[3:] == ["11.0", "1.500", "2.250", "0.12", "1.25"]


def test_speed_is_the_median_of_the_last_lines(run: Path) -> None:
    for images in range(16, 100, 4):
        line = {"images": images, "images_per_second": 20.0 if images > 60 else 5.0}
        append_json_line(run / "metrics.jsonl", line)
    (row,) = csv.DictReader(io.StringIO(to_csv(read_results([str(run)]))))
    assert float(row["images_per_second"]) == 5.0
    assert "generator_parameters" not in row


def test_encoders_alone_have_no_generator(run: Path) -> None:
    costs = Cost(None, 2_250_000, 0.125)
    results = read_results([str(run)], cost_of=lambda _: costs)
    (row,) = csv.DictReader(io.StringIO(to_csv(results)))
    assert (row["generator_parameters"], row["trained_parameters"]) == ("", "2250000")


def test_a_table_without_costs_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; from t2i_hpc.table import COMMAND; code = COMMAND.main(sys.argv[1:]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "GFLOP" not in done.stdout
