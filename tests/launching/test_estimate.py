"""What is said of a training before it is submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.cluster.jobs import Plan, Work
from t2i_hpc.common.files import append_json_line
from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.launch import main
from t2i_hpc.launching.estimate import (
    Sizes,
    card_of,
    checkpoint_sizes,
    estimate,
    sizes_by_shapes,
)
from t2i_hpc.runs.sessions import write_begin
from tests.support.checkpoints import make_checkpoints
from tests.support.training import TINY, tiny_system

pytestmark = pytest.mark.usefixtures("of_no_group")


def said(run: Path, shards: Path, *arguments: str, **cluster: Any) -> list[str]:
    work = Work("train", (f"data.path={shards}", *TINY, *arguments), run)
    return estimate(Plan(run.name, (work,), run), ClusterConfig(name="slurm", **cluster))


def test_an_unknown_card_gets_no_hours(shards: Path, tmp_path: Path) -> None:
    lines = said(tmp_path / "run", shards, "engine.images=400")
    assert lines[0] == (
        "estimate: 400 images to train on; unknown card: no hours (set cluster.card, e.g. h100)"
    )
    assert "checkpoints of 0.00" in lines[1]
    assert "3 kept" in lines[1]


def test_a_known_card_gets_hours(shards: Path, tmp_path: Path) -> None:
    lines = said(tmp_path / "run", shards, nodes=2, gpu_type="nvidia_a100", time="0:20:00")
    assert "10,000,000 images in " in lines[0]
    assert "counted for 2 a100, not measured, the network between nodes left out" in lines[0]
    assert "about " in lines[1]
    slow = said(tmp_path / "run", shards, "engine.checkpoint.every_minutes=30", time="0:20:00")
    assert "ends before its first checkpoint is due, 30 min after it begins" in slow[-1]


def test_a_run_that_has_measured_its_speed_is_believed(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_begin(run, job="", restart=0, hosts=("a",), ranks=4, pid=1, images=0)
    for speed in (1.0, 100.0, 100.0):
        append_json_line(run / "metrics.jsonl", {"images": 8, "images_per_second": speed})
    lines = said(run, shards, "engine.images=720000", time="1:00:00", card="h100")
    assert lines[0] == (
        "estimate: 720,000 images in 2 h at 100 img/s (measured by this run on 4 ranks), 3 starts "
        "of 1:00:00"
    )


def test_the_size_by_shapes_is_that_on_the_disk(tmp_path: Path) -> None:
    (folder,) = make_checkpoints(tmp_path, 4)
    found = 0
    for path in folder.glob("*.safetensors"):
        header = int.from_bytes(path.read_bytes()[:8], "little")  # the tensors' names and shapes
        found += path.stat().st_size - 8 - header
    sizes = sizes_by_shapes(tiny_system())
    assert sizes.each + sizes.once == pytest.approx(found, rel=0.01)  # steps are counted as well
    assert checkpoint_sizes(TrainConfig(), tmp_path) == Sizes(
        sum(path.stat().st_size for path in folder.glob("*.safetensors")), 0
    )


def test_the_card_is_what_the_job_asks_for() -> None:
    def named(**cluster: Any) -> str:
        card = card_of(ClusterConfig(name="slurm", **cluster))
        return card.name if card else ""

    assert named() == ""
    assert named(gpu_type="a100") == named(constraint="a100&ib") == "a100"
    assert named(gpu_type="a100", card="h200") == "h200"
    assert named(gpus_per_node=0, constraint="a100") == ""


def test_a_card_that_is_not_in_the_table_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster=slurm", "cluster.card=h10", "experiment=demo"]) == 2
    assert "card h10 is not in the table of cards: did you mean 'h100'" in capfd.readouterr().err
    assert main(["cluster=slurm", "cluster.link=ib4", "experiment=demo"]) == 2
    assert "link ib4 is not in the table of links" in capfd.readouterr().err


def test_only_trainings_are_estimated(tmp_path: Path) -> None:
    plan = Plan("x", (Work("evaluate", ("run=runs/x",), tmp_path),), tmp_path)
    assert estimate(plan, ClusterConfig(name="slurm")) == []
