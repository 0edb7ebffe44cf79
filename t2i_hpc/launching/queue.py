"""Between a plan and the queue: what runs already, what the cluster cannot do, submission."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from t2i_hpc.cluster.jobs import JobRecord, Plan, Work, read_jobs, record_jobs
from t2i_hpc.cluster.local_processes import run_plan, show_plan
from t2i_hpc.cluster.slurm.client import NoAnswerError, ask_states, has_client, run_client
from t2i_hpc.cluster.slurm.follow import follow
from t2i_hpc.cluster.slurm.options import cluster_of
from t2i_hpc.cluster.slurm.submission import Snapshot, batch_scripts, submit
from t2i_hpc.cluster.slurm.validation import check_job, check_notice, check_shared
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.terminal import say
from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.launching.estimate import estimate
from t2i_hpc.launching.plans import LaunchRequest

_ONE_WRITER = ("train", "pretrain")
_MERGE = "evaluation.merge=true"

Living = Mapping[Work, JobRecord]
"""The works of a plan that are in the queue already, each with its job."""


def launch_plan(plan: Plan, request: LaunchRequest, arguments: Sequence[str]) -> int:
    """Run a plan here or submit it; with ``cluster.dry_run`` print what would be run or submitted.

    Args:
        plan: of the request.
        request: what `arguments` ask for.
        arguments: the command line of `launch`.

    Returns:
        the exit code.

    Raises:
        ClusterError: all of it is in the queue, nobody knows whether it is, or the cluster refuses.
    """
    cluster = request.config.cluster
    if not plan.works and not plan.then:
        say(f"nothing is left to do: see {_table(plan)}")
        return 0
    if cluster.name == "local":
        code = (show_plan if cluster.dry_run else run_plan)(plan, cluster.processes)
        if request.config.task == "evaluate" and not (code or cluster.dry_run):
            say(f"scores: {_table(plan)}")
        return code
    return _show_scripts(plan, cluster) if cluster.dry_run else _submit(plan, request, arguments)


def _submit(plan: Plan, request: LaunchRequest, arguments: Sequence[str]) -> int:
    """Submit what of a plan is not in the queue already, or follow what is."""
    cluster = request.config.cluster
    living = active_tasks(plan)
    if request.follow and living:
        return follow(list(living.values()), plan.folder)
    fresh = drop_active(plan, living)
    check_plan(fresh, cluster)
    report_active(plan, living)
    for line in estimate(fresh, cluster):
        say(line)
    records = submit(fresh, cluster, Snapshot.take(request.configuration()))
    make_wait(plan, living, records)
    say(_next_commands(plan, records, arguments))
    return follow(records, plan.folder) if request.follow else 0


def _show_scripts(plan: Plan, cluster: ClusterConfig) -> int:
    """Print what would be submitted; without Slurm's clients all of it, and unchecked."""
    if has_client("sbatch"):
        plan = drop_active(plan, active_tasks(plan))
    else:
        say("sbatch is not installed here: nobody knows whether the cluster takes this", sys.stderr)
    check_plan(plan, cluster)
    for line in estimate(plan, cluster):
        say(line)
    for title, script in batch_scripts(plan, cluster):
        say(f"{title}\n\n{script}")
    return 0


def check_plan(plan: Plan, cluster: ClusterConfig) -> None:
    """Refuse what the cluster cannot do.

    Raises:
        ClusterError: Slurm is not here (a dry run needs none) or refuses the job, its time is
            too short, or a folder is not shared.
    """
    submits = has_client("sbatch")
    if not submits and not cluster.dry_run:
        raise ClusterError(
            "sbatch is not installed here: run this on a machine of the cluster that submits "
            "jobs (a login node), take cluster=local, or see its script with cluster.dry_run=true"
        )
    check_notice(cluster)
    for folder in (plan.folder, Path.cwd()):
        check_shared(folder)
    if cluster.check and submits:
        scripts = [script for _, script in batch_scripts(plan, cluster)]
        kinds = [*plan.works[:1], *([plan.then] if plan.then else [])]  # works ask for the same
        for work, script in zip(kinds, (scripts[0], scripts[-1]), strict=False):
            _check_job(cluster_of(work, cluster), script, merges=work.merge_gpus is not None)


def active_tasks(plan: Plan) -> Living:
    """Return the works of a plan that jobs in the queue do, of whatever submission.

    Raises:
        ClusterError: nobody knows whether one of these jobs still lives.
    """
    works = [*plan.works, *([plan.then] if plan.then else [])]
    submitted = {folder: read_jobs(folder) for folder in {work.folder for work in works}}
    same = {
        work: [record for record in submitted[work.folder] if _is_same(record, work)]
        for work in works
    }
    living = ask_states(record.job for records in same.values() for record in records).living()
    found = {work: [each for each in same[work] if each.job in living] for work in works}
    # The first job of a work; the next ones are its successors.
    firsts = {work: records[0] for work, records in found.items() if records}
    if plan.then in firsts and not living[firsts[plan.then].job].waits:
        del firsts[plan.then]  # it began too early for what is missing
    return firsts


def drop_active(plan: Plan, living: Living) -> Plan:
    """Return a plan of the works that no job in the queue does.

    The last work waits for the jobs in the queue as well.

    Raises:
        ClusterError: nothing is left to submit; names a job.
    """
    fresh = tuple(work for work in plan.works if work not in living)
    then = None if plan.then in living else plan.then
    if not fresh and not then:
        record = next(iter(living.values()))
        raise ClusterError(
            f"job {record.job} does this already, into {record.folder}: follow it with "
            f"--follow, or end it first with python -m t2i_hpc.cancel {record.folder}"
        )
    after = tuple(dict.fromkeys(living[work].job for work in plan.works if work in living))
    return dataclasses.replace(plan, works=fresh, then=then, then_after=after if then else ())


def report_active(plan: Plan, living: Living) -> None:
    """Say which works are in the queue already, if any."""
    jobs = [living[work] for work in plan.works if work in living]
    if jobs:
        count = len(plan.works)
        say(
            f"{len(jobs)} of {count} are in the queue already ({_jobs(jobs)}), "
            f"{count - len(jobs)} new"
        )


def make_wait(plan: Plan, living: Living, records: Sequence[JobRecord]) -> None:
    """Let a merge that waits in the queue wait for new jobs as well.

    Raises:
        ClusterError: Slurm refuses.
    """
    merge = living.get(plan.then) if plan.then else None
    if merge is None:
        return
    others = [living[work].job for work in plan.works if work in living]
    after = tuple(dict.fromkeys([*others, *(record.job for record in records)]))
    dependency = f"Dependency=afterany:{':'.join(after)}"
    try:
        run_client("scontrol", "update", f"JobId={merge.job}", dependency)
    except ClusterError as error:
        raise ClusterError(
            f"job {merge.job}, the merge, may begin before the new jobs have ended ({error}): give "
            "the same command again when they have"
        ) from error
    changed = dataclasses.replace(merge, after=after)
    for folder in {plan.folder, Path(merge.folder)}:
        record_jobs(folder, [changed])
    say(f"job {merge.job}, the merge, waits for them as well")


def _next_commands(plan: Plan, records: Sequence[JobRecord], arguments: Sequence[str]) -> str:
    """Return what a user wants to know now: jobs, folder, and how to follow, check and cancel."""
    folder, own = shlex.quote(str(plan.folder)), [each for each in arguments if each != "--follow"]
    lines = [
        f"{_jobs(records)} in the queue: {plan.name}",
        f"  folder  {plan.folder}",
        f"  log     {records[0].log}",
        f"  follow  python -m t2i_hpc.launch --follow {shlex.join(own)}",
        f"  check   python -m t2i_hpc.status {folder}",
        f"  cancel  python -m t2i_hpc.cancel {folder}",
    ]
    lines += [f"  scores  {_table(plan)}"] if records[0].task == "evaluate" else []
    return "\n".join(lines)


def _table(plan: Plan) -> str:
    """Return the command that shows what came of a plan, beside the papers' numbers."""
    folder = shlex.quote(str(plan.folder))
    return f"python -m t2i_hpc.table {folder} best=true published=true"


def _jobs(records: Sequence[JobRecord]) -> str:
    parents = list(dict.fromkeys(record.job.partition("_")[0] for record in records))
    works = f" ({len(records)} tasks)" if len(records) > len(parents) else ""
    return f"{'job' if len(parents) == 1 else 'jobs'} {', '.join(parents)}{works}"


def _check_job(cluster: ClusterConfig, script: str, *, merges: bool) -> None:
    try:
        check_job(cluster, script)
    except NoAnswerError:
        raise
    except ClusterError as error:
        if not merges or cluster.gpus_per_node:
            raise
        raise ClusterError(
            f"the job that merges asks for no GPU: {error}; where the partition takes no jobs "
            "without GPUs, set cluster.merge_gpus=1"
        ) from error


def _is_same(record: JobRecord, work: Work) -> bool:
    """Whether a job, submitted for the folder of a work, does that work.

    A run has one writer at a time, whatever the arguments.
    """
    folder = Path(record.folder)
    elsewhere = folder.is_absolute() and folder.resolve() != work.folder.resolve()
    if record.task != work.task or elsewhere:  # elsewhere: of a run that this one is a copy of
        return False
    if record.task in _ONE_WRITER or _located(record.arguments) == _located(work.arguments):
        return True
    if work.merge_gpus is None or _MERGE in record.arguments:
        return False
    return _located(_whole(record.arguments)) == _located(_whole(work.arguments))


def _whole(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of the evaluation that merges as well, in one job of several ranks."""
    given = [each for each in arguments if each != _MERGE]
    return [each for each in given if not each.startswith("evaluation.shards=")]


def _located(arguments: Sequence[str]) -> list[str]:
    """Return arguments in one order, and one name for each path: runs/x and /home/me/runs/x."""
    return sorted(map(_located_argument, arguments))


def _located_argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    path = Path((value if equals else argument).strip("\"'"))
    return f"{key if equals else ''}={path.resolve()}" if path.exists() else argument
