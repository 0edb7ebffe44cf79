"""Results side by side: what may be compared stands in one column, and nothing else."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

from t2i_hpc.cluster.sweeps import plan_sweep
from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.files import append_json_line
from t2i_hpc.config.compose import compose_config, to_yaml
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.reporting.results import read_results
from t2i_hpc.reporting.results_text import to_csv, to_markdown


def score(run: Path, images: int, value: float, n: int = 30_000, protocol: str = "aa") -> None:
    row = {"metric": "FID", "value": value, "n": n, "n_real": 500, "protocol": protocol}
    append_json_line(run / "scores.jsonl", {**row, "images": images, "better": "lower"})


@pytest.fixture
def sweep(made: Path, tmp_path: Path) -> Path:
    """A copy of the sweep for one test, which may change it."""
    copy = tmp_path / "runs"
    shutil.copytree(made.parent.parent, copy)
    return copy / "sweeps" / made.name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two masks × two seeds; three are trained and scored, one has not begun."""
    runs = tmp_path_factory.mktemp("runs")

    def locate(config: TrainConfig) -> Path:
        return runs / f"{config.system.masks}-{config.seed}"  # type: ignore[attr-defined]

    words = ("system.masks=2,3", "seed=1,2", f"runs={runs}")
    plan = plan_sweep("train", words, None, locate)
    for number, work in enumerate(plan.works[:3]):
        (work.folder / "checkpoints" / "0000000400").mkdir(parents=True)
        config = compose_config("train", work.arguments, TrainConfig)
        (work.folder / "config.yaml").write_text(to_yaml(config))
        score(work.folder, 100, 90.0)
        score(work.folder, 400, 20.0 + 2 * number)
        append_json_line(
            work.folder / "metrics.jsonl", {"images": 400, "images_per_second": 10 + number}
        )
    score(plan.works[0].folder, 400, 1.5, protocol="bb")
    return plan.folder


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_a_sweep_has_its_axes_and_a_column_a_protocol(sweep: Path) -> None:
    head, rule, *rows = cells(to_markdown(read_results([str(sweep)])))
    assert head == [
        "system.masks",
        "seed",
        "state",
        "images",
        "img/s",
        "FID ↓ (N 30,000, N real 500, protocol aa)",
        "at images",
        "FID ↓ (N 30,000, N real 500, protocol bb)",
        "at images",
    ]
    assert all(set(cell) <= set("-:") for cell in rule)
    assert rows == [
        ["2", "1", "stopped", "400", "10.0", "20", "400", "1.5", "400"],
        ["2", "2", "stopped", "400", "11.0", "22", "400", "", ""],
        ["3", "1", "stopped", "400", "12.0", "24", "400", "", ""],
        ["3", "2", "new", "0", "", "", "", "", ""],
    ]


def test_scores_of_other_numbers_of_images_stand_apart(sweep: Path) -> None:
    score(sweep.parent.parent / "2-1", 400, 25.0, n=5_000)
    head = cells(to_markdown(read_results([str(sweep)])))[0]
    numbers = [cell.split()[3] for cell in head if "aa" in cell]
    assert numbers == ["30,000,", "5,000,"]


def test_r_precision_is_a_percentage_for_people_and_a_share_in_csv(sweep: Path) -> None:
    row = {"metric": "R-precision", "value": 0.7658, "std": 0.0053, "n": 30_000, "protocol": "cc"}
    run = sweep.parent.parent / "2-1"
    append_json_line(run / "scores.jsonl", {**row, "images": 400, "better": "higher"})
    results = read_results([str(run)])
    assert "76.58 ± 0.53 %" in cells(to_markdown(results))[2]
    assert "0.7658" in list(csv.reader(io.StringIO(to_csv(results))))[1]


def test_one_protocol_is_one_column_whatever_it_is_called(sweep: Path) -> None:
    row = {"metric": "KID", "value": 5.0, "n": 30, "n_real": 9, "protocol": "cc", "images": 400}
    for name in ("2-1", "2-2"):
        run = sweep.parent.parent / name
        append_json_line(run / "scores.jsonl", {**row, "protocol_name": name})
    head = cells(to_markdown(read_results([str(sweep)])))[0]
    assert sum("KID" in cell for cell in head) == 1


def test_averages_over_seeds(sweep: Path) -> None:
    results = read_results([str(sweep)], over="seed")
    head, _, *rows = cells(to_markdown(results))
    assert head[:5] == ["system.masks", "runs", "state", "images", "img/s"]
    assert rows[0][:7] == ["2", "2", "stopped", "400", "10.5", "21 ± 1.414", "400"]
    assert rows[1][:7] == [
        "3",
        "2",
        "1 stopped, 1 new",
        "0 to 400",
        "12.0",
        "24 (1 of 2 runs)",
        "400",
    ]
    rows = list(csv.reader(io.StringIO(to_csv(results))))
    assert rows[1][5:9] == ["21.0", str(2**0.5), "2", "400"]


def test_a_score_has_its_error_bar_and_the_name_of_its_protocol(sweep: Path) -> None:
    row = {"metric": "IS", "value": 5.07, "std": 0.04, "n": 30_000, "n_real": 0, "protocol": "cc"}
    run = sweep.parent.parent / "2-1"
    append_json_line(
        run / "scores.jsonl", {**row, "protocol_name": "attngan", "images": 400, "better": "higher"}
    )
    results = read_results([str(run), str(sweep.parent.parent / "2-2")])
    head, _, first, second = cells(to_markdown(results))
    place = head.index("IS ↑ (N 30,000, protocol attngan cc)")
    assert (first[place], second[place]) == ("5.07 ± 0.04", "")
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert rows[0]["IS ↑ (N 30,000, protocol attngan cc) error bar"] == "0.04"


def test_all_digits_in_csv(sweep: Path) -> None:
    score(sweep.parent.parent / "2-1", 400, 20.123456789)
    rows = list(csv.DictReader(io.StringIO(to_csv(read_results([str(sweep)])))))
    assert rows[0]["FID ↓ (N 30,000, N real 500, protocol aa)"] == "20.123456789"
    assert rows[0]["images"] == "400"


def test_runs_show_the_settings_in_which_they_differ(sweep: Path) -> None:
    runs = [str(sweep.parent.parent / name) for name in ("2-1", "3-1")]
    results = read_results(runs)
    assert results.axes == ("run", "system.masks")
    assert [row.labels["system.masks"] for row in results.rows] == ["2", "3"]


def test_a_run_beside_a_sweep_shows_its_name(sweep: Path) -> None:
    runs = sweep.parent.parent
    shutil.copytree(runs / "3-1", runs / "alone")
    words = [str(each) for each in (sweep, runs / "2-1", runs / "alone")]
    results = read_results(words)
    assert results.axes == ("system.masks", "seed", "run")
    assert [tuple(row.labels.values()) for row in results.rows] == [
        ("2", "1", ""),
        ("2", "2", ""),
        ("3", "1", ""),
        ("3", "2", ""),
        ("", "", "alone"),
    ]


def test_what_does_not_vary_is_no_axis(sweep: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="over=sed does not vary here: did you mean 'seed'"
    ):
        read_results([str(sweep)], over="sed")
    with pytest.raises(RunError, match="there is no such folder"):
        read_results([str(sweep / "nothing")])
