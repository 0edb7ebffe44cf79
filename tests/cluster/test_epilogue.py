"""What the end of a task means for its job; a plain job, and an element of an array."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2i_hpc.cluster.jobs import JobRecord, chain_of, mark_cancelled, read_jobs, record_jobs
from t2i_hpc.cluster.slurm.bad_nodes import find_bad_nodes
from t2i_hpc.cluster.slurm.job import prologue
from t2i_hpc.cluster.slurm.requeue import cause_of, epilogue, on_term
from t2i_hpc.cluster.slurm.starts import Start, note_begin, note_end, read_starts
from t2i_hpc.common.errors import GAVE_UP, NOTHING_LEFT
from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.runs.partial_statistics import Header, PartialStatistics, Target
from t2i_hpc.runs.sessions import Session, write_begin, write_end
from tests.cluster.clients import Clients

RUNNING = "JobState=RUNNING Reason=None Restarts=0 PreemptTime=None ExcNodeList={}"
COMPLETING = "JobState=COMPLETING Reason={} Restarts={} PreemptTime={} ExcNodeList=(null)"
ALIKE = "gpu*|8|1000|gpu:4|(null)"


class Here:
    """The job that a test is in: its number, and Slurm's clients."""

    def __init__(self, job: str, clients: Clients) -> None:
        self.job, self.clients = job, clients
        self.requeue = f"scontrol requeue {job}"
        self.is_in(RUNNING.format("(null)"))

    def is_in(self, state: str) -> None:
        self.clients.answer("scontrol", f"JobId=7 WorkDir=/tmp {state}")

    @property
    def requeues(self) -> int:
        return self.clients.calls.count(self.requeue)

    @property
    def changes(self) -> list[str]:
        """The calls that change something."""
        kinds = ("scontrol requeue", "scontrol update", "scancel")
        return [call for call in self.clients.calls if call.startswith(kinds)]


@pytest.fixture(params=["7", "7_3"])
def here(clients: Clients, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Here:
    """Be in a job on one of two nodes; an element has the number of its whole array, too."""
    _, _, element = request.param.partition("_")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "gpu")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    for name, value in (("SLURM_ARRAY_JOB_ID", "7"), ("SLURM_ARRAY_TASK_ID", element)):
        monkeypatch.setenv(name, value) if element else monkeypatch.delenv(name, raising=False)
    clients.answer("squeue")
    clients.answer("scancel")
    clients.answer("sinfo", "n1|8|1000|gpu:4|(null)\nn2|8|1000|gpu:4|(null)")
    return Here(request.param, clients)


def submitted(
    folder: Path, job: str, predecessor: str = "", task: str = "train", **more: Any
) -> Path:
    arguments = more.pop("arguments", ("seed=1",))
    cluster = dataclasses.asdict(ClusterConfig(name="slurm", **more))
    record = JobRecord(job, "x", task, arguments, str(folder), "log", cluster, "now", predecessor)
    record_jobs(folder, [record])
    return folder


def save(folder: Path, images: int) -> None:
    (folder / f"checkpoints/{images:010d}").mkdir(parents=True)


def lose(folder: Path, job: str, *hosts: str) -> None:
    given: dict[str, Any] = {"restart": 0, "ranks": 2, "pid": 1, "images": 0}
    identity = write_begin(folder, job=job, hosts=("n1", "n2"), **given)
    write_end(folder, identity, "lost", 0, lost_hosts=hosts)


@pytest.mark.parametrize("code", [0, 1, 2, 77])
def test_an_end_that_stays_what_it_is(here: Here, tmp_path: Path, code: int) -> None:
    assert epilogue(submitted(tmp_path / "run", here.job), code) == code
    assert here.changes == []


@pytest.mark.parametrize("code", [75, 76, 137, 143])
def test_a_task_that_can_resume_is_requeued_alone(here: Here, tmp_path: Path, code: int) -> None:
    """Never by SLURM_JOB_ID, which is all of an array to Slurm."""
    epilogue(submitted(tmp_path / "run", here.job), code)
    assert here.changes == [here.requeue]


@pytest.mark.parametrize(("outcome", "requeues"), [("stopped", 1), ("lost", 1), ("failed", 0)])
def test_what_the_run_says_counts_where_torchrun_always_ends_with_1(
    here: Here, tmp_path: Path, outcome: str, requeues: int
) -> None:
    run = submitted(tmp_path / "run", here.job)
    given: dict[str, Any] = {"restart": 0, "ranks": 2, "pid": 1, "images": 0}
    write_end(run, write_begin(run, job=here.job, hosts=("n1",), **given), outcome, 0)
    epilogue(run, 1)
    assert here.requeues == requeues


def test_a_script_without_a_record_is_requeued(here: Here, tmp_path: Path) -> None:
    epilogue(tmp_path / "run", 75)
    assert here.requeues == 1


def test_a_job_that_is_to_end_ends(here: Here, tmp_path: Path) -> None:
    assert epilogue(submitted(tmp_path / "run", here.job, on_stop="end"), 75) == 75
    on_term(tmp_path / "run")
    assert here.requeues == 0


@pytest.mark.parametrize(
    ("state", "requeued"),
    [
        (("None", 0, "None"), False),  # scancel
        (("None", 1, "None"), False),  # requeued already
        (("TimeLimit", 1, "None"), False),
        (("NodeDown", 0, "None"), False),
        (("TimeLimit", 0, "None"), True),
        (("JobLaunchFailure", 0, "None"), True),  # the batch script was killed
        (("NonZeroExitCode", 0, "None"), True),  # of an earlier start: this script still runs
        (("None", 0, "2026-11-28T05:33:15"), True),
    ],
)
def test_a_job_that_slurm_ends_is_requeued_where_nobody_wants_its_end(
    here: Here, tmp_path: Path, state: tuple[str, int, str], requeued: bool
) -> None:
    here.is_in(COMPLETING.format(*state))
    run = submitted(tmp_path / "run", here.job)
    on_term(run)
    assert here.requeues == requeued
    assert epilogue(run, 75) == 75
    assert here.requeues == 2 * requeued


@pytest.mark.parametrize(
    ("reason", "outcome", "resumed"),
    [
        ("TimeLimit", "", True),  # before the step began: "Job/step already completing"
        ("NonZeroExitCode", "", True),
        ("TimeLimit", "failed", False),  # a traceback at that moment
        ("None", "", False),  # scancel
    ],
)
def test_a_launcher_that_ends_with_1_because_slurm_ends_the_job_is_no_defect(
    here: Here, tmp_path: Path, reason: str, outcome: str, resumed: bool
) -> None:
    here.is_in(COMPLETING.format(reason, 0, "None"))
    requeued, chain = (tmp_path / on_stop for on_stop in ("requeue", "chain"))
    for run in (requeued, chain):
        submitted(run, here.job, on_stop=run.name)
        if outcome:
            given: dict[str, Any] = {"restart": 0, "ranks": 2, "pid": 1, "images": 0}
            write_end(run, write_begin(run, job=here.job, hosts=("n1",), **given), outcome, 0)
    submitted(chain, "8", here.job)
    epilogue(requeued, 1)
    epilogue(chain, 1)
    assert here.changes == [here.requeue if resumed else "scancel --quiet 8"]


def test_what_was_requeued_while_its_task_saved_is_no_failure(here: Here, tmp_path: Path) -> None:
    here.is_in("JobState=PENDING Reason=BeginTime Restarts=1")
    run = submitted(tmp_path / "run", here.job)
    assert (epilogue(run, 75), epilogue(run, 1)) == (75, 143)
    assert not read_starts(run, [here.job])
    assert here.requeues == 0


def test_a_job_that_a_person_cancelled_is_left_alone(here: Here, tmp_path: Path) -> None:
    mark_cancelled(tmp_path / "run", ["7"])
    here.is_in(COMPLETING.format("TimeLimit", 0, "None"))
    assert epilogue(submitted(tmp_path / "run", here.job), 75) == 75
    on_term(tmp_path / "run")
    assert here.requeues == 0


def test_starts_without_a_new_checkpoint_are_counted(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, restart = submitted(tmp_path / "run", here.job, max_restarts=2), 0

    def start() -> int:
        nonlocal restart
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        restart += 1
        return prologue(run) or epilogue(run, 76)

    save(run, 0)
    for images in (100, 200):
        assert [start() for _ in range(2)] == [76, 76]
        save(run, images)  # progress: the count begins anew
    assert [start() for _ in range(2)] == [76, 76]
    assert start() == GAVE_UP
    assert "gives up: 3 starts in a row made no new checkpoint" in capfd.readouterr().err
    assert here.requeues == 6


def test_preemptions_are_no_failures(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", here.job, max_restarts=1)
    for restart in range(5):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        here.is_in(RUNNING.format("(null)"))
        assert prologue(run) == 0
        here.is_in(COMPLETING.format("None", restart, "2026-11-28T05:33:15"))
        on_term(run)
    assert here.requeues == 5


def test_a_start_that_hangs_at_its_time_limit_gives_up_in_the_end(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", here.job, max_restarts=1)
    codes = []
    for restart in range(4):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        here.is_in(RUNNING.format("(null)"))
        codes.append(prologue(run))
        here.is_in(COMPLETING.format("TimeLimit", restart, "None"))
        on_term(run)
    assert codes == [0, 0, GAVE_UP, GAVE_UP]
    assert here.requeues == 2


def test_another_submission_is_counted_by_itself(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", here.job, max_restarts=0)
    assert epilogue(run, 76) == GAVE_UP
    submitted(run, "8", max_restarts=1)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert epilogue(run, 76) == 76


def save_statistics(folder: Path, shard: int, job: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = Target("generated", "1a2b", "c" * 64, 64, 32)
    path = folder / f"shard-{shard:05d}-of-00016-batch-32.npz"
    header = Header(target, 0, 4, shard, 16, job=job)
    PartialStatistics(header, {"count": np.array(4)}).save(path)
    return path


def test_an_evaluation_is_measured_by_its_own_shard(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the checkpoints of the training that continues, nor by what others compute."""
    arguments = ("run=x", "checkpoint=400", "evaluation.shard=3")
    run = submitted(tmp_path / "run", here.job, "", "evaluate", arguments=arguments, max_restarts=2)
    codes = []
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        codes.append(prologue(run) or epilogue(run, 137))
        save(run, 1000 * (restart + 1))
        save_statistics(run / "evaluations/1a2b" / f"{400:010d}-3c4d", restart, here.job)
        other = run / f"evaluations/other-{restart}" / f"{400:010d}-3c4d"
        save_statistics(other, 3, "8")  # with another protocol
    assert codes == [137, 137, GAVE_UP]


@pytest.mark.parametrize("where", ["run/evaluations/1a2b/0000000400-3c4d", "real-statistics/9f"])
def test_an_evaluation_that_computes_shard_after_shard_makes_progress(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = submitted(tmp_path / "run", here.job, "", "evaluate", max_restarts=0)
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        assert prologue(run) == 0
        last = save_statistics(tmp_path / where, restart, here.job)
        assert epilogue(run, 137) == 137
    last.write_bytes(last.read_bytes()[:-8])  # cut off: what this start wrote is nothing
    assert epilogue(run, 137) == GAVE_UP


def test_a_build_is_measured_by_its_own_finished_shards(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from t2i_hpc.data.build.workspace import Build, Workspace

    arguments = ("split=test", "partition=2/2")
    folder = submitted(tmp_path / "d", here.job, "", "shards", arguments=arguments, max_restarts=0)
    workspace = Workspace(folder / "test")
    workspace.split.mkdir(parents=True)
    Build("d", "test", 304, 8, 0.0, ["a"] * 4).save(workspace)
    for restart, shard in enumerate((2, 3)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        assert prologue(folder) == 0
        workspace.tar(shard).touch()
        assert epilogue(folder, 137) == 137
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert prologue(folder) == 0
    workspace.tar(0).touch()  # another's
    assert epilogue(folder, 137) == GAVE_UP


def test_a_node_that_was_lost_twice_is_excluded(
    here: Here, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here.is_in(RUNNING.format("n9"))  # as a person said to sbatch
    run = submitted(tmp_path / "run", here.job)
    lose(run, here.job, "n2")
    epilogue(run, 76)
    assert here.changes == [here.requeue]
    lose(run, here.job, "n2")
    epilogue(run, 76)
    assert here.changes[-1] == f"scontrol update JobId={here.job} ExcNodeList=n9,n2"
    assert "n2 failed twice and is not used again" in capfd.readouterr().err


def test_no_node_is_excluded_that_a_job_needs(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where a script was submitted by hand, and nobody wrote down how many nodes it wants."""
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    run = tmp_path / "run"
    for _ in range(2):
        lose(run, here.job, "n2")
    epilogue(run, 76)
    assert here.changes == [here.requeue]
    assert "no other nodes" in capfd.readouterr().err


def test_a_refusal_of_slurm_is_said(
    here: Here, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here.clients.answer("scontrol", "Requested operation is presently disabled", 1)
    assert epilogue(submitted(tmp_path / "run", here.job), 75) == 75
    said = capfd.readouterr().err
    assert "could not be resumed (scontrol refused: Requested" in said
    assert "run the same command again" in said


def test_only_the_last_start_shows_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ended = "srun: error: n1: task{} Exited with exit code {}\n"
    log.write_text(
        "Starting with JobEnvironment\n"
        + ended.format(" 3:", 1)
        + "Starting with JobEnvironment\n"
        + ended.format("s 0-1:", 76)
    )
    assert cause_of(log, 76) == 76
    log.write_text(log.read_text() + ended.format("s 2,4-5:", 2))
    assert cause_of(log, 76) == 2
    assert cause_of(log, 137) == 137
    assert cause_of(tmp_path / "nothing", 76) == 76


def test_only_what_is_certain_makes_a_node_bad() -> None:
    now = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.timezone.utc)

    def session(**more: Any) -> Session:
        given: dict[str, Any] = {"job": "7", "ended": now.isoformat(), "hosts": ("n1", "n2")}
        return Session("a", "then", **{**given, "lost_hosts": ("n2",), **more})

    starts = [Start("7", 0, code=76), Start("7", 1)]
    assert find_bad_nodes([session(), session()], starts, now) == ["n2"]
    cut_off = session(ended=None, lost_hosts=())  # preempted or killed: says nothing of a node
    assert find_bad_nodes([cut_off, cut_off], starts, now) == []
    assert find_bad_nodes([session(), session(restart=1)], starts, now) == []  # Slurm ended it
    assert find_bad_nodes([session(), session(job="8")], starts, now) == []
    later = now + datetime.timedelta(days=2)
    assert find_bad_nodes([session(), session()], starts, later) == []


def test_a_chain_of_successors(tmp_path: Path) -> None:
    for job, predecessor in (("1", ""), ("2", "1"), ("3", "2"), ("9", "")):
        submitted(tmp_path, job, predecessor)
    assert chain_of(read_jobs(tmp_path), "3") == ["3", "2", "1"]
    assert chain_of([], "5") == ["5"]


@pytest.mark.parametrize(
    ("end", "left"),
    [
        (0, "ended with code 0"),
        (2, "ended with code 2"),
        ("CANCELLED", "was cancelled"),
        (75, None),
        ("TIMEOUT", None),
        ("PREEMPTED", None),
    ],
)
def test_a_successor_leaves_at_once_where_nothing_is_left(
    here: Here,
    tmp_path: Path,
    end: int | str,
    left: str | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = submitted(submitted(tmp_path / "run", "5"), here.job, "5")
    note_begin(run, "5", 0, 0)
    if isinstance(end, int):
        note_end(run, "5", 0, end)
    else:
        here.clients.answer("squeue", f"5|{end}|None|n1")
    assert prologue(run) == (NOTHING_LEFT if left else 0)
    assert (left or "") in capfd.readouterr().err
    assert epilogue(run, NOTHING_LEFT) == 0


def test_a_chain_that_vanishes_each_time_gives_up(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written at its end, as when its node's memory is full; preemption is no fault."""
    run, codes = tmp_path / "run", []
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    for job in range(1, 7):
        state = "PREEMPTED" if job < 4 else "OUT_OF_MEMORY"
        here.clients.answer("squeue", f"{job - 1}|{state}|None|n1")
        submitted(run, str(job), str(job - 1) if job > 1 else "", max_restarts=1)
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        codes.append(prologue(run))
    assert codes == [0, 0, 0, 0, 0, GAVE_UP]
    assert len(read_starts(run, ["5", "4", "3"])) == 3


def test_a_working_directory_that_the_node_does_not_see_is_said(
    here: Here, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here.clients.answer("scontrol", "JobId=7 JobState=RUNNING WorkDir=/home/me/not here StdErr=x")
    assert prologue(submitted(tmp_path / "run", here.job)) == 2
    assert "does not see /home/me/not here, where job" in capfd.readouterr().err


@pytest.mark.parametrize(("code", "ends"), [(66, 2), (2, 0), (0, 0)])
def test_only_a_node_that_looked_keeps_a_task_from_its_start(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, ends: int
) -> None:
    """A step of srun's that fails by itself ends with 2, whatever the node sees."""
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    here.clients.answer("srun", "execve(): bash: No such file or directory", code)
    assert prologue(submitted(tmp_path / "run", here.job)) == ends
