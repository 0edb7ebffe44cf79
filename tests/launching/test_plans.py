"""What each task becomes on a cluster, and what is refused before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.cluster.jobs import Plan, Work
from t2i_hpc.common.errors import UserError
from t2i_hpc.common.files import write_json
from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TASK_SCHEMAS
from t2i_hpc.data.build.choose_vocabulary import make_vocabulary
from t2i_hpc.evaluate import COMMAND as EVALUATE
from t2i_hpc.launching.plans import TaskRequest, plan_of, sweep_of
from tests.commands.trained import make_run
from tests.support.data import make_image_folder
from tests.support.tars import foreign, write_tars
from tests.support.training import TINY


def plan(task: str, *arguments: str, **cluster: Any) -> Plan:
    config = compose_config(task, arguments, TASK_SCHEMAS[task])
    return plan_of(TaskRequest(task, arguments, config, ClusterConfig(name="slurm", **cluster)))


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "birds", shards)


def test_a_training_is_one_job_in_its_run(shards: Path, tmp_path: Path) -> None:
    arguments = (f"data.path={shards}", f"runs={tmp_path}", *TINY)
    made = plan("train", *arguments, nodes=2)
    (work,) = made.works
    assert (work.task, work.arguments, made.then) == ("train", arguments, None)
    assert work.folder == made.folder
    assert made.folder.parent == tmp_path
    assert made.name == made.folder.name


def test_shards_of_an_evaluation_take_one_checkpoint(run: Path) -> None:
    arguments = (f"run={run}", "evaluation=demo", "evaluation.shards=3")
    made = plan("evaluate", *arguments)
    pinned = (*arguments, "checkpoint=200")  # a training that continues makes newer ones
    assert [work.arguments for work in made.works] == [
        (*pinned, f"evaluation.shard={shard}") for shard in range(3)
    ]
    assert made.then is not None
    assert made.then.arguments == (*pinned, "evaluation.merge=true")
    assert made.name == "evaluate-birds"
    assert "checkpoint=200" not in plan("evaluate", *arguments, "checkpoint=100").works[0].arguments
    all_of_them = plan("evaluate", *arguments, "checkpoint=all").works[1].arguments
    assert all_of_them[-2:] == ('checkpoint="100,200"', "evaluation.shard=1")
    again = plan("evaluate", *all_of_them[:-1])  # a shard reads them as they were written
    assert [work.arguments[:-1] for work in again.works] == [all_of_them[:-1]] * 3


def test_a_whole_evaluation_is_one_job_of_any_ranks(run: Path) -> None:
    made = plan("evaluate", f"run={run}", "evaluation=demo", gpus_per_node=8)
    assert (len(made.works), made.then) == (1, None)  # of eight ranks that share both shards


def test_a_merge_has_work_for_a_gpu_where_features_are_compared(run: Path) -> None:
    few = ("evaluation.shards=3", "evaluation.kid_subset_size=5")

    def gpus(*arguments: str) -> int | None:
        made = plan("evaluate", f"run={run}", "evaluation=demo", *few, *arguments)
        assert {work.merge_gpus for work in made.works} == {None}
        assert made.then is not None
        return made.then.merge_gpus

    assert gpus("evaluation.metrics=[fid]") == 0
    assert gpus("evaluation.metrics=[fid,kid]") == 1
    assert gpus("evaluation.metrics=[precision_recall]") == 1
    assert gpus("evaluation.metrics=[kid]", "device=cpu") == 0


def test_an_evaluation_of_which_the_merge_is_left_is_a_merge(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "whole"))
    small = (
        "evaluation.images=10",
        "evaluation.batch_size=4",
    )
    fid = ("evaluation.split=train", "evaluation.metrics=[fid]")
    arguments = (f"run={run}", "device=cpu", "evaluation=demo", *small, *fid)
    assert plan("evaluate", *arguments, gpus_per_node=2).works[0].merge_gpus is None
    assert EVALUATE.main([*arguments, "evaluation.shards=3"]) == 0
    for more, ranks in (((), 3), (("evaluation.shards=3",), 1)):
        made = plan("evaluate", *arguments, *more, gpus_per_node=ranks)
        (merge,) = made.works
        assert (merge.merge_gpus, made.then) == (0, None)
        assert merge.arguments[-1] == "evaluation.merge=true"
        assert "evaluation.shards=3" in merge.arguments


def test_build_partitions_and_their_merge(tmp_path: Path) -> None:
    images = make_image_folder(tmp_path / "images", range(3))
    arguments = (f"images={images}", f"output={tmp_path / 'out'}")
    made = plan("shards", *arguments, build_partitions=2)
    assert [work.arguments[-1] for work in made.works] == ["partition=1/2", "partition=2/2"]
    target = str(tmp_path / "out" / "train")
    assert made.then == Work("shards", ("merge", target), tmp_path / "out", merge_gpus=0)
    assert not (tmp_path / "out").exists()
    Path(target).mkdir(parents=True)
    with pytest.raises(UserError, match="is there already"):
        plan("shards", *arguments)


def test_partitions_of_tars_want_a_vocabulary_before(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    write_tars(tars, [foreign(number) for number in range(3)])
    arguments = ("source=webdataset", f"images={tars}", f"output={tmp_path / 'out'}")
    assert len(plan("shards", *arguments).works) == 1
    with pytest.raises(UserError, match="write it first, shards vocabulary"):
        plan("shards", *arguments, build_partitions=2)
    make_vocabulary(tmp_path / "out", [tars])
    assert len(plan("shards", *arguments, build_partitions=2).works) == 2


def test_a_report_belongs_to_its_run(run: Path) -> None:
    made = plan("report", f"run={run}")
    assert made.works == (Work("report", (f"run={run}",), run),)


def test_a_sweep_is_one_work_a_point(shards: Path, tmp_path: Path) -> None:
    arguments = ("seed=1,2", f"data.path={shards}", f"runs={tmp_path}", *TINY)
    made = sweep_of("train", arguments, None, ClusterConfig())
    assert [work.arguments[0] for work in made.works] == ["seed=1", "seed=2"]
    with pytest.raises(UserError, match="cannot be divided by 3 ranks"):
        sweep_of("train", arguments, None, ClusterConfig(processes=3))


def test_a_sweep_is_scored_run_by_run_and_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, sweep = ("scored", "waits", "untrained"), tmp_path / "sweeps" / "birds"
    for name in names:
        shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("evaluations"))
    shutil.rmtree(tmp_path / "untrained" / "checkpoints")
    points = [{"values": {"seed": n}, "overrides": [], "run": f"../../{n}"} for n in names]
    axes = [{"key": "seed", "values": list(names)}]
    write_json(sweep / "sweep.json", {"task": "train", "axes": axes, "points": points})
    few = ("evaluation.images=4", "evaluation.batch_size=4", "evaluation.metrics=[fid]")
    tiny = ("evaluation=demo", *few, "device=cpu")
    assert EVALUATE.main([f"run={tmp_path / 'scored'}", *tiny]) == 0
    (work,) = plan("evaluate", f"run={sweep}", *tiny, "evaluation.shards=2").works
    assert work.folder == tmp_path / "waits"
    assert work.arguments[0] == f'run="{tmp_path / "waits"}"'
    assert work.arguments[-1] == "checkpoint=200"  # a training that continues makes newer ones
    assert "1 with no checkpoint yet and 1 with these scores" in capsys.readouterr().err
    other = plan("evaluate", f"run={sweep}", *tiny, "checkpoint=100")
    assert [work.folder.name for work in other.works] == ["scored", "waits"]
    for key in ("output=x", "evaluation.merge=true"):
        with pytest.raises(UserError, match="leave"):
            plan("evaluate", f"run={sweep}", *tiny, key)


def test_refusals(run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    empty = shutil.copytree(run, tmp_path / "empty")
    shutil.rmtree(empty / "checkpoints")
    train = (f"data.path={shards}", f"runs={tmp_path}", *TINY)
    cases: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
        (
            "one task, not of 4",
            ("shards", "images=i", "output=o"),
            {"build_partitions": 2, "nodes": 4},
        ),
        ("no checkpoint yet", ("evaluate", f"run={empty}", "evaluation=demo"), {}),
        ("no such folder", ("evaluate", "run=/nowhere", "evaluation=demo"), {}),
        ("t2i_hpc.fetch", ("evaluate", f"run={run}"), {}),
        ("output= is missing", ("shards", "images=i"), {}),
        ("cannot be divided by 8 ranks", ("train", *train), {"gpus_per_node": 8}),
        ("/nowhere", ("train", *train, "data.path=/nowhere"), {}),
        ("no split 'held_out'", ("train", *train, "data.test_split=held_out"), {}),
        ("no such file", ("train", *train, "system.text_encoder.weights=w"), {}),
        ("2 images that each of 2 ranks", ("train", *train, "engine.accumulate=4"), {"nodes": 2}),
        ("this system has the phases", ("train", *train, "engine.compile=[gen]"), {}),
        ("system.blocks or system.masks", ("train", *train, "system.masks=9"), {}),
        ("pretrain takes system=damsm", ("pretrain", "system=ssa_gan"), {}),
    ]
    make_image_folder(tmp_path / "i", range(2))
    monkeypatch.chdir(tmp_path)
    for sentence, (task, *arguments), cluster in cases:
        with pytest.raises(UserError, match=sentence):
            plan(task, *arguments, **cluster)
