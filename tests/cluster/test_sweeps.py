"""Several values of a key become one plan of many runs, each of them trained once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t2i_hpc.cluster.jobs import Plan
from t2i_hpc.cluster.sweeps import is_sweep, plan_sweep, read_sweep, refuse_axes
from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.runs.run_directory import prepare_run
from t2i_hpc.runs.sessions import write_begin, write_end
from t2i_hpc.train import locate

Planner = Callable[..., Plan]


@pytest.fixture
def plan(shards: Path, tmp_path: Path) -> Planner:
    """Plan a sweep whose runs lie in the test's folder."""

    def planned(*arguments: str, folder: Path | None = None) -> Plan:
        own = (f"data.path={shards}", f"runs={tmp_path}/runs", *arguments)
        return plan_sweep("train", own, folder, locate)

    return planned


def train(run: Path, arguments: tuple[str, ...], images: int, outcome: str | None = None) -> None:
    """Leave what a training of that many images leaves."""
    config = compose_config("train", arguments, TrainConfig)
    prepare_run(run, config, 1, torch.device("cpu"))
    (run / "checkpoints" / f"{images:010d}").mkdir(parents=True)
    name = write_begin(run, job="", restart=0, hosts=("n1",), ranks=1, pid=1, images=0)
    if outcome:
        write_end(run, name, outcome, images)


def test_points_are_the_product_of_the_axes(plan: Planner, shards: Path) -> None:
    made = plan("system.masks=range(2,5)", "seed=1,2", "name=masks")
    assert made.folder.parent.name == "sweeps"
    assert made.name == made.folder.name
    assert made.name.startswith("masks-")
    assert len({work.folder for work in made.works}) == 6
    for work in made.works:
        config = compose_config("train", work.arguments, TrainConfig)
        assert work.task == "train"
        assert work.folder == locate(config)
    values = [(w.arguments[2].partition("=")[2], w.arguments[3]) for w in made.works]
    assert values == [(mask, seed) for mask in "234" for seed in ("seed=1", "seed=2")]


@pytest.mark.parametrize("written", ["1e5,2e5", "choice(1e5, 2e5)", "'1e5',2e5"])
def test_a_sweep_over_names_takes_them_as_they_were_written(plan: Planner, written: str) -> None:
    made = plan(f"name={written}", "seed=1,2")
    names = [compose_config("train", work.arguments, TrainConfig).name for work in made.works]
    assert names == ["1e5", "1e5", "2e5", "2e5"]


@pytest.mark.parametrize("written", ['"a,b",c', r"a\,b,c", '"a,b",c,c'])
def test_names_of_a_sweep_may_hold_commas(plan: Planner, written: str) -> None:
    made = plan(f"name={written}")
    configs = [compose_config("train", work.arguments, TrainConfig) for work in made.works]
    assert [config.name for config in configs] == ["a,b", "c"]


def test_what_is_written_is_read_again(plan: Planner, tmp_path: Path) -> None:
    made = plan("seed=1,2", "engine.compile=[generator],[]")
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "runs", moved)
    sweep = read_sweep(moved / "sweeps" / made.name)
    assert sweep.axes == {"seed": ("1", "2"), "engine.compile": ("[generator]", "[]")}
    # Which networks are compiled makes no other run: points that coincide are one.
    assert [point.values["seed"] for point in sweep.points] == ["1", "2"]
    names = [work.folder.name for work in made.works]
    assert [point.run for point in sweep.points] == [moved / name for name in names]
    assert [point.overrides for point in sweep.points] == [work.arguments for work in made.works]


def test_groups_and_quoted_values_are_values(plan: Planner, tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    for width in (2, 4):
        text = f"# @package _global_\nname: own\nsystem:\n  generator_width: {width}\n"
        (own / "experiment" / f"w{width}.yaml").write_text(text)
    made = plan("experiment=w2,w4", "name='a b','c,d'", folder=own)
    assert [work.arguments[0] for work in made.works] == 4 * [f"--config-dir={own}"]
    names = [work.folder.name.rpartition("-")[0] for work in made.works]
    assert names == ["a b", "c,d", "a b", "c,d"]
    assert made.name.startswith("sweep-")


def test_the_same_points_are_the_same_sweep(plan: Planner) -> None:
    first, again = plan("seed=1,2"), plan("seed=2,1")
    assert first.folder == again.folder
    assert plan("seed=1,2,3").folder != first.folder


def test_points_that_are_done_are_left_out(plan: Planner) -> None:
    images = "engine.images=40"
    made = plan("seed=1,2,3,4", images)
    one, two, three, four = made.works
    train(one.folder, one.arguments, 40)
    train(two.folder, two.arguments, 20, "done")  # by another limit that was asked for
    train(three.folder, three.arguments, 20, "stopped")
    train(four.folder, four.arguments, 20)
    assert [w.folder for w in plan("seed=1,2,3,4", images).works] == [three.folder, four.folder]
    assert len(plan("seed=1,2", "engine.images=60").works) == 2
    train_all = plan("seed=1,2", images)
    assert train_all.works == ()
    assert is_sweep(train_all.folder)


def test_what_is_no_sweep_is_refused(plan: Planner) -> None:
    with pytest.raises(ConfigurationError, match="a sweep needs a key with several values"):
        plan("seed=1")
    with pytest.raises(ConfigurationError, match=r"interval\(1,2\) is no list of values"):
        plan("seed=interval(1,2)")
    with pytest.raises(ConfigurationError, match="seed= is given twice"):
        plan("seed=1,2", "seed=3")
    with pytest.raises(ConfigurationError, match=r"point seed=1 system.masks=x: "):
        plan("seed=1,2", "system.masks=x,2")
    with pytest.raises(ConfigurationError, match="unknown key 'sead'"):
        plan("sead=1,2")


def test_several_values_without_a_sweep_are_refused() -> None:
    refuse_axes(["seed=1", "engine.compile=[a,b]", "name='a,b'"])
    with pytest.raises(ConfigurationError, match="seed=1,2 gives several values: add --sweep"):
        refuse_axes(["name=a", "seed=1,2"])


def test_a_damaged_sweep_is_named(plan: Planner) -> None:
    folder = plan("seed=1,2").folder
    content = json.loads((folder / "sweep.json").read_text())
    for text in ("{", json.dumps({**content, "points": [1]}), "[]"):
        (folder / "sweep.json").write_text(text)
        with pytest.raises(RunError, match=r"sweep\.json cannot be read"):
            read_sweep(folder)


def test_a_plan_writes_nothing_but_its_own_folder(plan: Planner, tmp_path: Path) -> None:
    made = plan("seed=1,2")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["sweeps"]
    assert [path.name for path in made.folder.iterdir()] == ["sweep.json"]
