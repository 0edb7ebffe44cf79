"""The first step of a job's script: whether its task is to start at all.

A node that does not see the job's folders is named. A successor whose work is done leaves at once,
and one that was started again and again without progress gives up. With ``on_stop=chain`` the job
that resumes this one is submitted now.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.cluster.slurm import requeue as fate
from t2i_hpc.cluster.slurm import requeue as going_on
from t2i_hpc.cluster.slurm.job_record import KnownJob, know
from t2i_hpc.cluster.slurm.starts import count_idle, note_begin, starts_of
from t2i_hpc.cluster.states import states_of
from t2i_hpc.common.errors import GAVE_UP, NOTHING_LEFT, ClusterError, resumes
from t2i_hpc.common.terminal import say_in_log

_USER_ERROR = 2
_UNSEEN = 66  # of no program: srun itself ends with 2, e.g. where a node finds no bash
_RECORD_PATIENCE_SECONDS = 5.0
_VISIBLE_SECONDS = 120.0
_LOOK = (
    'for path in "$@"; do [ -e "$path" ] || { echo "t2i_hpc: $(hostname) does not see $path: put '
    'it on a file system that all nodes share (not /tmp or another local disk)" >&2; '
    f"exit {_UNSEEN}; }}; "
    "done"
)


def prologue(folder: Path) -> int:
    """Return 0 where the task is to start, else what the script is to end with.

    Args:
        folder: where the job is recorded, or the run directory.
    """
    known = know(folder, _RECORD_PATIENCE_SECONDS)
    if not _sees_all(known):
        return _USER_ERROR
    before, reason = _before(known)
    if reason:
        say_in_log(f"job {known.job} has nothing to do: {reason}")
        return NOTHING_LEFT
    reached = known.progress()
    if (idle := count_idle(known.starts(), reached)) > known.cluster.max_restarts:
        say_in_log(gives_up(known, idle))
        return GAVE_UP
    try:
        if again := going_on.wait_for_successors(known):
            say_in_log(
                f"what job {known.job} waits for is being resumed: job {again.job} follows it"
            )
            return NOTHING_LEFT
    except ClusterError as error:
        say_in_log(f"job {known.job} may begin too early: {error}")
    note_begin(known.work, known.job, known.restart, reached, before)
    if known.chains and not known.was_cancelled():
        _submit_successor(known)
    return 0


def gives_up(known: KnownJob, idle: int) -> str:
    """Return the sentence for a job that makes no progress."""
    what = {"evaluate": "partial statistics", "shards": "shard"}
    made = what.get(known.record.task if known.record else "", "checkpoint")
    return (
        f"job {known.job} gives up: {idle} starts in a row made no new {made} "
        f"(cluster.max_restarts={known.cluster.max_restarts}); the log above says why"
    )


def _before(known: KnownJob) -> tuple[str, str]:
    """Return Slurm's state of the job that this one resumes if that left no end, and a reason not
    to start."""
    if len(known.chain) < 2 or known.restart:
        return "", ""
    job = known.chain[1]
    last = next(iter(starts_of(known.work, [job])), None)
    if last is not None and last.code is not None:
        return "", "" if resumes(last.code) else f"job {job} ended with code {last.code}"
    state = states_of([job]).get(job)
    word = state.word if state else ""
    return word, f"job {job} was cancelled" if word == "CANCELLED" else ""


def _submit_successor(known: KnownJob) -> None:
    try:
        successor = going_on.ensure_successor(known)
        say_in_log(f"job {successor.job} resumes job {known.job}, should it stop before its end")
    except ClusterError as error:  # it is tried again at the end
        say_in_log(f"no job resumes job {known.job} yet: {error}")


def _sees_all(known: KnownJob) -> bool:
    """Say it where a node of the job does not see the folders it works in."""
    directory = fate.ask(known.job).folder
    if directory is not None and not directory.is_dir():
        say_in_log(
            f"{os.uname().nodename} does not see {directory}, where job {known.job} was submitted: "
            "submit it from a folder that all nodes share (not /tmp or another local disk)"
        )
        return False
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1)
    return nodes < 2 or _all_nodes_see(known, nodes)


def _all_nodes_see(known: KnownJob, nodes: int) -> bool:
    """Let every node of the job look for a file that this one makes beside the work."""
    folder = next(path for path in (known.work, *known.work.parents) if path.is_dir())
    probe = folder / f".seen-by-all-nodes-{uuid.uuid4().hex[:8]}"
    try:
        probe.touch()
    except OSError:
        return True  # the task says it
    try:
        return _run_everywhere(nodes, _LOOK, [str(probe.absolute()), str(Path.cwd())])
    finally:
        probe.unlink(missing_ok=True)


def _run_everywhere(nodes: int, script: str, words: Sequence[str]) -> bool:
    step = ["srun", "--quiet", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    step += ["--cpus-per-task=1", "--overlap", "--mpi=none"]
    try:
        done = subprocess.run(
            [*step, "bash", "-c", script, "look", *words],
            timeout=_VISIBLE_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True  # whatever is wrong with srun, the task's own says it better
    return done.returncode != _UNSEEN
