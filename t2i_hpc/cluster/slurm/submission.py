"""Plans become jobs: one, or arrays and the job that follows them, submitted through submitit.

An array longer than the cluster allows becomes several, each of which begins when the one before
has ended: so never more than ``cluster.array_parallelism`` elements run, whatever the number of
arrays. submitit writes the batch script and starts one small Python a task. The lines around it
that let a job resume (:data:`BEFORE`, :data:`AFTER`) also stand in the scripts in ``slurm/``, word
for word, which a test compares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from t2i_hpc.cluster.jobs import JOBS_FOLDER, JobRecord, Plan, Work, record_jobs
from t2i_hpc.cluster.slurm.client import has_client
from t2i_hpc.cluster.slurm.options import (
    Options,
    cluster_of,
    joined,
    outside_of_jobs,
    resource_options,
    user_options,
)
from t2i_hpc.cluster.slurm.task import TaskCommand
from t2i_hpc.cluster.slurm.validation import longest_array, minutes_of
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.files import git, write_json, write_text
from t2i_hpc.config.cluster import ClusterConfig

_STRAGGLER_SECONDS = 300

# They expect an array `job`: how to run t2i_hpc.cluster.slurm.job for the job's folder.
BEFORE = (
    "# Slurm's TERM (time limit, preemption) ends this script together with the tasks. srun runs",
    "# beside the script, so that bash answers it at once: whatever the tasks still do, the job is",
    "# requeued.",
    "trap '\"${job[@]}\" TERM || true' TERM",
    '"${job[@]}" begin || exec "${job[@]}" $?',
)

BESIDE = " & step=$!"

AFTER = (
    "while wait $step; code=$?; kill -0 $step 2>/dev/null; do :; done",
    "# It may have ended while bash answered TERM: then this knows how.",
    "wait $step 2>/dev/null && code=0 || { late=$?; [ $late = 127 ] || code=$late; }",
    "trap '' TERM # requeueing the job ends this script, too",
    'exec "${job[@]}" $code',
)


def job_line(python: str, folder: str) -> str:
    """Return the line that defines ``job``; both arguments are shell words."""
    return f"job=({python} -m t2i_hpc.cluster.slurm.job {folder})"


def submit(
    plan: Plan,
    cluster: ClusterConfig,
    snapshot: Snapshot,
    predecessor: str = "",
    after: Sequence[str] = (),
) -> list[JobRecord]:
    """Submit a plan and record its jobs in the folders that they belong to.

    Args:
        plan: what to run.
        cluster: where and how.
        snapshot: is written beside the logs.
        predecessor: the job that a plan of one work resumes.
        after: the jobs that it waits for, if not for that one.

    Raises:
        ClusterError: Slurm is not installed here, or refuses; says which jobs of the plan are
            in the queue already.
    """
    if not has_client("sbatch"):
        raise ClusterError("sbatch is not installed here, so no job can be submitted")
    submission = _Submission(plan, cluster, snapshot, predecessor, after)
    _, script = next(batch_scripts(plan, cluster))
    with outside_of_jobs(script):
        try:
            submission.run()
        except (FailedJobError, FailedSubmissionError) as error:
            raise _refusal(error, submission.records) from error
    return submission.records


def batch_scripts(plan: Plan, cluster: ClusterConfig) -> Iterator[tuple[str, str]]:
    """Yield for each job of a plan a title and the whole batch script; submit nothing."""
    for chunk in _chunks(plan.works):
        executor = _executor(plan.folder, plan.name, cluster_of(chunk[0], cluster))
        if len(chunk) > 1:
            executor.parameters["map_count"] = len(chunk)
        yield _title(chunk), _script(executor)
    if plan.then:
        own = cluster_of(plan.then, cluster)
        yield _title([plan.then]), _script(_executor(plan.folder, _name_of_last(plan), own))


def log_of(folder: Path, job: str) -> Path:
    """Return the file of a job's output: of its script and of the first rank."""
    return folder / JOBS_FOLDER / f"{job}_0_log.out"


@dataclass(frozen=True)
class Snapshot:
    """The state of code and packages at one moment.

    Attributes:
        commit: of the checkout that the code runs from; "" outside of one.
        changes: what differs from it, as git shows it.
        packages: installed versions by name.
        configuration: YAML, resolved.
    """

    commit: str
    changes: str
    packages: dict[str, str]
    configuration: str

    @classmethod
    def take(cls, configuration: str) -> Snapshot:
        """Take the checkout and the packages as they are now."""
        found = {each.metadata["Name"]: each.version for each in distributions()}
        packages = dict(sorted((name, version) for name, version in found.items() if name))
        return cls(git("rev-parse", "HEAD").strip(), git("diff", "HEAD"), packages, configuration)

    def write(self, folder: Path, job: str) -> None:
        """Write ``JOB_code.json``, ``JOB_config.yaml`` and perhaps ``JOB_changes.diff``."""
        state = {"commit": self.commit, "changed": bool(self.changes), "packages": self.packages}
        write_json(folder / f"{job}_code.json", state)
        write_text(folder / f"{job}_config.yaml", self.configuration)
        if self.changes:
            write_text(folder / f"{job}_changes.diff", self.changes)


def without_percent(folder: Path) -> Path:
    """Return an absolute folder, or the link that stands for it where its path has a ``%``.

    Slurm and submitit read ``%j`` and the like in a path as a pattern, submitit wherever it stands:
    the log of a run below ``50%j`` would be in another folder, ``100%a`` is no path at all.
    """
    if "%" not in str(folder):
        return folder
    above = next(path for path in folder.parents if "%" not in str(path))
    return above / f".t2i_hpc-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def link_without_percent(folder: Path) -> None:
    """Make the link that :func:`without_percent` names, and the folder, if there is to be one.

    Raises:
        ClusterError: the folder of the link cannot be written.
    """
    link = without_percent(folder)
    if link == folder:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            return
        link.symlink_to(folder, target_is_directory=True)
    except OSError as error:
        raise ClusterError(
            f"{folder} has a % in its path, which Slurm takes for a pattern, and {link} cannot be "
            f"made to stand for it ({error.strerror}): rename the folder"
        ) from error


@dataclasses.dataclass
class _Submission:
    plan: Plan
    cluster: ClusterConfig
    snapshot: Snapshot
    predecessor: str
    after: Sequence[str]
    records: list[JobRecord] = dataclasses.field(default_factory=list)

    def run(self) -> None:
        before = list(self.after or filter(None, [self.predecessor]))
        arrays: list[str] = []
        for chunk in _chunks(self.plan.works):
            job = self._submit(chunk, self.plan.name, before)
            arrays, before = [*arrays, job], [job]
        if self.plan.then:
            arrays = [*self.plan.then_after, *arrays]
            self._submit([self.plan.then], _name_of_last(self.plan), arrays)

    def _submit(self, works: Sequence[Work], name: str, after: Sequence[str]) -> str:
        """Submit works as one job; return its number without that of an element."""
        link_without_percent(self.plan.folder.absolute() / JOBS_FOLDER)
        cluster = cluster_of(works[0], self.cluster)
        executor = _executor(self.plan.folder, name, cluster, after)
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # errors are raised, too
            folder = str(self.plan.folder.absolute())
            jobs = [
                executor.submit(TaskCommand(work.task, work.arguments, folder)) for work in works
            ]
        numbers = [str(job.job_id) for job in jobs]
        self._record(works, numbers, name, after, cluster)
        parent = numbers[0].partition("_")[0]
        self.snapshot.write(self.plan.folder / JOBS_FOLDER, parent)
        return parent

    def _record(
        self,
        works: Sequence[Work],
        jobs: Sequence[str],
        name: str,
        after: Sequence[str],
        cluster: ClusterConfig,
    ) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        for work, job in zip(works, jobs, strict=True):
            record = JobRecord(
                job=job,
                name=name,
                task=work.task,
                arguments=work.arguments,
                folder=str(work.folder),
                log=str(log_of(self.plan.folder, job)),
                cluster=dataclasses.asdict(cluster),
                submitted=now,
                predecessor=self.predecessor,
                after=tuple(after),
            )
            self.records.append(record)
            for folder in {self.plan.folder, work.folder}:
                record_jobs(folder, [record])


def _executor(
    folder: Path, name: str, cluster: ClusterConfig, after: Sequence[str] = ()
) -> SlurmExecutor:
    python = cluster.python or shlex.quote(sys.executable)
    executor = _Executor(without_percent(folder.absolute() / JOBS_FOLDER), python=python)
    own = job_line(python, shlex.quote(str(folder.absolute())))
    decided = "set +e # what a failed task means is decided below"
    before = f"afterany:{':'.join(after)}" if after else None
    parameters = _parameters(cluster) | {
        "job_name": name,
        "dependency": joined(before, user_options(cluster).get("dependency")),
        "setup": [*cluster.setup, decided, own, *BEFORE],
        "teardown": [*AFTER, ""],
    }
    given = {key: value for key, value in parameters.items() if value not in (None, "")}
    executor.update_parameters(**given, wckey=None)
    return executor


def _parameters(cluster: ClusterConfig) -> dict[str, Any]:
    return {
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks_of_node,
        "cpus_per_task": cluster.cpus_per_task,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "time": minutes_of(cluster.time),
        "signal_delay_s": cluster.stop_before,
        "array_parallelism": cluster.array_parallelism,
        "stderr_to_stdout": True,
        # srun inherits no --cpus-per-task since Slurm 22.05, and waits for ever for a rank on a
        # node that is gone.
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_task}", f"--wait={_STRAGGLER_SECONDS}"],
        "additional_parameters": _additional(cluster),
    }


def _additional(cluster: ClusterConfig) -> Options:
    """Return options that submitit has no names for; --requeue: a dead node is no end."""
    options, given = resource_options(cluster), user_options(cluster)
    options["no-requeue" if cluster.on_stop == "end" else "requeue"] = True
    given.pop("dependency", None)  # joined with that of the plan
    if gres := joined(options.get("gres"), given.get("gres")):
        given["gres"] = gres
    return options | given


class _Executor(SlurmExecutor):  # type: ignore[misc]  # submitit has no types
    """submitit's executor, whose step runs beside the script, not before its next line."""

    @classmethod
    def affinity(cls) -> int:
        """Claim that Slurm is here: a script can be shown without it."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        command: str = super()._submitit_command_str
        return command + BESIDE


def _chunks(works: Sequence[Work]) -> Iterator[Sequence[Work]]:
    size = longest_array() if len(works) > 1 else 1
    for first in range(0, len(works), size):
        yield works[first : first + size]


def _name_of_last(plan: Plan) -> str:
    return f"{plan.name}-merge"


def _title(works: Sequence[Work]) -> str:
    lines = [f"python -m t2i_hpc.{shlex.join([work.task, *work.arguments])}" for work in works]
    return "\n".join(lines)


def _script(executor: SlurmExecutor) -> str:
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def _refusal(error: Exception, submitted: Sequence[JobRecord]) -> ClusterError:
    lines = [line.strip().removeprefix("sbatch: ") for line in str(error).splitlines()]
    reason = "; ".join(line.removeprefix("error: ") for line in lines if line)
    text = f"sbatch refused: {reason or 'it gives no reason'}"
    if submitted:
        jobs = sorted({record.job.partition("_")[0] for record in submitted})
        text += f" (already in the queue: {' '.join(jobs)}; scancel takes them out)"
    return ClusterError(text)
