"""What is in the queue already is not submitted twice; the rest is."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import JobRecord, Plan, Work, read_jobs, record_jobs
from t2i_hpc.cluster.slurm.submission import Snapshot, submit
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.launch import main
from t2i_hpc.launching.queue import (
    active_tasks,
    check_plan,
    drop_active,
    make_wait,
    report_active,
)
from tests.cluster.clients import Clients
from tests.commands.trained import make_run
from tests.support.training import TINY

SBATCH = """#!/bin/bash
echo sbatch "$@" >> {calls}
[[ $* == *--test-only* ]] && exit 0
echo "Submitted batch job 500"
"""
LIMITED = """#!/bin/bash
if [ -e {calls}-full ]; then
  echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
  echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
  exit 1
fi
> {calls}-full
echo "Submitted batch job 500"
"""


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clients:
    """A cluster whose queue holds job 5 and nothing else."""
    made = Clients(tmp_path / "bin", monkeypatch)
    made.answer("squeue", "5_0|RUNNING|None|n1\n5_1|PENDING|Resources|\n6|PENDING|Dependency|")
    made.answer("scontrol", "MaxArraySize = 100")
    made.answer("sinfo", "gpu*|up|infinite|4|64|gpu:4")
    for name in ("sacct", "srun", "scancel"):
        made.answer(name)
    (made.folder / "sbatch").write_text(SBATCH.format(calls=made.folder / "calls"))
    (made.folder / "sbatch").chmod(0o755)
    return made


def work(folder: Path, *arguments: str, task: str = "train") -> Work:
    return Work(task, arguments, folder)


def submitted(job: str, done: Work, folder: str = "") -> None:
    """Record a job that does a work."""
    written = folder or str(done.folder)
    record = JobRecord(job, "x", done.task, done.arguments, written, "log", {}, "now")
    record_jobs(done.folder, [record])


@pytest.mark.usefixtures("clients")
def test_the_living_points_of_a_sweep_are_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    works = [work(tmp_path / f"run-{seed}", f"seed={seed}") for seed in range(4)]
    submitted("5_0", works[0])
    submitted("5_1", works[2])
    submitted("4", works[3])  # the queue does not know it any more
    plan = Plan("sweep", tuple(works), tmp_path)
    living = active_tasks(plan)
    assert drop_active(plan, living).works == (works[1], works[3])
    report_active(plan, living)
    assert "2 of 4 are in the queue already (job 5 (2 tasks)), 2 new" in capfd.readouterr().out


def test_a_submit_limit_is_reported_with_what_is_in_the_queue_already(
    clients: Clients, tmp_path: Path
) -> None:
    """Slurm takes the first of two arrays."""
    clients.answer("scontrol", "MaxArraySize = 2")
    (clients.folder / "sbatch").write_text(LIMITED.format(calls=clients.folder / "calls"))
    works = tuple(work(tmp_path / f"run-{seed}", f"seed={seed}") for seed in range(4))
    plan = Plan("x", works, tmp_path / "sweep")
    with pytest.raises(ClusterError) as refusal:
        submit(plan, ClusterConfig(name="slurm"), Snapshot("", "", {}, ""))
    assert str(refusal.value) == (
        "sbatch refused: AssocMaxSubmitJobLimit; Batch job submission failed: Job violates "
        "accounting/QOS policy (already in the queue: 500; scancel takes them out)"
    )
    assert [record.job for record in read_jobs(plan.folder)] == ["500_0", "500_1"]


@pytest.mark.usefixtures("clients")
def test_one_work_that_lives_is_refused(tmp_path: Path) -> None:
    run = work(tmp_path / "run", "seed=1")
    submitted("5_0", run)
    again = Plan("again", (work(tmp_path / "run", "seed=1", "engine.images=9"),), tmp_path / "run")
    with pytest.raises(ClusterError, match="job 5_0 does this already"):
        drop_active(again, active_tasks(again))


@pytest.mark.usefixtures("clients")
def test_one_folder_has_several_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("runs")
    near, far = Path("runs/a"), tmp_path / "runs" / "a"
    given = ("run=runs/a", "evaluation.shard=0", "evaluation.cache='runs'")
    submitted("5_0", work(near, "runs=runs"))
    submitted("5_1", work(near, *given, task="evaluate"))
    for folder in (near, far, tmp_path / "link" / "a"):
        again = Plan("x", (work(folder, f"runs={folder.parent}"),), folder)
        assert [record.job for record in active_tasks(again).values()] == ["5_0"]
        arguments = (f"evaluation.cache={folder.parent}", f"run={folder}", "evaluation.shard=0")
        shard = work(folder, *arguments, task="evaluate")
        assert active_tasks(Plan("x", (shard,), folder)).keys() == {shard}
        other = work(folder, f"run={folder}", "evaluation.shard=1", task="evaluate")
        assert not active_tasks(Plan("x", (other,), folder))


@pytest.mark.usefixtures("clients")
def test_a_copy_of_a_run_is_another_run(tmp_path: Path) -> None:
    copy = work(tmp_path / "copy", "seed=1")
    submitted("5_0", copy, folder=str(tmp_path / "original"))
    assert not active_tasks(Plan("x", (copy,), copy.folder))


def test_a_merge_waits_for_new_and_living_shards(clients: Clients, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shards = [work(run, f"evaluation.shard={number}", task="evaluate") for number in range(3)]
    merge = work(run, "evaluation.merge=true", task="evaluate")
    submitted("5_0", shards[0])
    submitted("5_1", shards[1])
    plan = Plan("evaluate", tuple(shards), run, merge)
    fresh = drop_active(plan, active_tasks(plan))
    assert (fresh.works, fresh.then, fresh.then_after) == ((shards[2],), merge, ("5_0", "5_1"))

    submitted("6", merge)
    living = active_tasks(plan)
    fresh = drop_active(plan, living)
    assert (fresh.works, fresh.then) == ((shards[2],), None)
    new = JobRecord("500", "x", "evaluate", shards[2].arguments, str(run), "log", {}, "now")
    make_wait(plan, living, [new])
    assert clients.calls[-1] == "scontrol update JobId=6 Dependency=afterany:5_0:5_1:500"
    after = {record.job: record.after for record in read_jobs(run)}
    assert after["6"] == ("5_0", "5_1", "500")


@pytest.mark.usefixtures("clients")
def test_a_job_of_several_ranks_that_still_scores_is_not_merged_beside(tmp_path: Path) -> None:
    submitted("5_0", work(tmp_path, "run=x", "evaluation.images=9", task="evaluate"))
    for images, known in ((9, True), (8, False)):
        arguments = ("run=x", f"evaluation.images={images}", "evaluation.shards=4")
        merge = Work("evaluate", (*arguments, "evaluation.merge=true"), tmp_path, merge_gpus=0)
        assert bool(active_tasks(Plan("x", (merge,), tmp_path))) == known


def test_a_silent_controller_lets_nothing_be_submitted_twice(
    clients: Clients, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cluster=slurm", f"data.path={shards}", f"runs={tmp_path / 'runs'}", *TINY]
    arguments += ["cluster.check=false", "cluster.cpus_per_task=1"]
    assert main(arguments) == 0
    clients.answer("squeue", "slurm_load_jobs error: Unable to contact slurm controller", 1)
    assert main(arguments) == 2
    assert "nobody knows whether job 500 still waits or runs" in capfd.readouterr().err
    assert sum(call.startswith("sbatch") for call in clients.calls) == 1


def test_shards_of_an_evaluation_that_live_are_left_out(
    clients: Clients, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "birds", shards)
    arguments = ["task=evaluate", "cluster=slurm", f"run={run}", "evaluation=demo"]
    arguments += ["evaluation.shards=3", "cluster.cpus_per_task=1"]
    assert main(arguments) == 0
    clients.answer("squeue", "500_0|RUNNING|None|n1\n500_2|PENDING|Resources|")
    assert main([*arguments, "cluster.array_parallelism=2"]) == 0
    assert "2 of 3 are in the queue already (job 500 (2 tasks)), 1 new" in capfd.readouterr().out
    newest = max(read_jobs(run), key=lambda record: len(record.after))  # jobs share a second
    assert newest.after == ("500_0", "500_2", "500")


@pytest.mark.usefixtures("clients")
@pytest.mark.parametrize(("time", "taken"), [("2", False), ("00:02:00", False), ("3", True)])
def test_a_time_limit_is_longer_than_its_notice(tmp_path: Path, time: str, taken: bool) -> None:
    """Each start would save one step and be requeued."""
    plan = Plan("x", (work(tmp_path / "run"),), tmp_path / "run")
    cluster = ClusterConfig(name="slurm", time=time, gpus_per_node=0, cpus_per_task=1)
    if taken:
        check_plan(plan, cluster)
        return
    with pytest.raises(ClusterError, match=r"not longer than cluster\.stop_before=120 seconds"):
        check_plan(plan, cluster)
