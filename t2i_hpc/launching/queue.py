"""Between a plan and the queue: what the cluster cannot do, what is there already, what is next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.cluster.jobs import JobRecord, Plan, Work, read_jobs
from t2i_hpc.cluster.shared_folder import check_shared
from t2i_hpc.cluster.slurm.client import has_client
from t2i_hpc.cluster.slurm.partitions import check_resources, read_partitions
from t2i_hpc.cluster.states import ask_states
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.config.cluster import ClusterConfig

_ONE_WRITER = ("train", "pretrain")


def check_plan(plan: Plan, cluster: ClusterConfig) -> None:
    """Refuse what the cluster cannot do.

    Raises:
        ClusterError: Slurm is not here, the partition is too small, or a folder is not shared.
    """
    if not has_client("sbatch"):
        raise ClusterError(
            "sbatch is not installed here: run this on a machine of the cluster that submits "
            "jobs (a login node), or take cluster=local"
        )
    if cluster.check:
        check_resources(cluster, read_partitions())
    for folder in (plan.folder, Path.cwd()):
        check_shared(folder)


def jobs_of(plan: Plan) -> list[JobRecord]:
    """Return the jobs of a plan's works that wait or run, of whatever submission.

    Raises:
        ClusterError: nobody knows whether one of them still lives.
    """
    works = [*plan.works, *([plan.then] if plan.then else [])]
    folders = {work.folder for work in works}
    records = {record.job: record for folder in folders for record in read_jobs(folder)}
    same = [each for each in records.values() if any(_is_same(each, work) for work in works)]
    living = ask_states(record.job for record in same).living()
    return [each for each in same if each.job in living]


def refuse_twice(plan: Plan) -> None:
    """Refuse what is in the queue already.

    Raises:
        ClusterError: names the job.
    """
    if living := jobs_of(plan):
        raise ClusterError(
            f"job {living[0].job} does this already, into {living[0].folder}: follow it with "
            f"--follow, or end it first with python -m t2i_hpc.cancel {living[0].folder}"
        )


def say_what_next(plan: Plan, records: Sequence[JobRecord], words: Sequence[str]) -> str:
    """Return what a person wants to know now: jobs, folder, and how to follow, check and cancel."""
    folder, own = shlex.quote(str(plan.folder)), [word for word in words if word != "--follow"]
    lines = [
        f"{_jobs(records)} in the queue: {plan.name}",
        f"  folder  {plan.folder}",
        f"  log     {records[0].log}",
        f"  follow  python -m t2i_hpc.launch --follow {shlex.join(own)}",
        f"  check   python -m t2i_hpc.status {folder}",
        f"  cancel  python -m t2i_hpc.cancel {folder}",
    ]
    return "\n".join(lines)


def _jobs(records: Sequence[JobRecord]) -> str:
    parents = list(dict.fromkeys(record.job.partition("_")[0] for record in records))
    works = f" ({len(records)} tasks)" if len(records) > len(parents) else ""
    return f"{'job' if len(parents) == 1 else 'jobs'} {', '.join(parents)}{works}"


def _is_same(record: JobRecord, work: Work) -> bool:
    """Whether a job does a work, or writes into a run that has one writer at a time."""
    if record.folder != str(work.folder) or record.task != work.task:
        return False
    return record.words == work.words or record.task in _ONE_WRITER
