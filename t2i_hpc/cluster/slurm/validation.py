"""Validates a job before it is submitted: partition, time, folder, and what sbatch says of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.cluster.slurm.client import (
    NoAnswerError,
    has_client,
    run_client,
    split_rows,
    warn_of,
)
from t2i_hpc.cluster.slurm.options import outside_of_jobs, partitions_of
from t2i_hpc.common.errors import ClusterError, nearest
from t2i_hpc.config.cluster import ClusterConfig

_FIELDS = "%P|%a|%l|%D|%c|%G"
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_DEFAULT_ARRAY = 1001
_NAMED = 3
_WAY_AROUND = "cluster.check=false submits it all the same, e.g. while nodes are down"
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


@dataclass(frozen=True)
class Partition:
    """One queue of the cluster.

    Attributes:
        name: as sbatch takes it.
        default: whether it is taken where none is named.
        up: whether it takes jobs.
        minutes: longest time limit of a job; infinite where there is none.
        nodes: what it consists of, a phrase for each kind of node.
    """

    name: str
    default: bool
    up: bool
    minutes: float
    nodes: tuple[str, ...]


def check_job(cluster: ClusterConfig, script: str) -> None:
    """Refuse a job that Slurm could not run.

    Slurm is asked itself, with ``sbatch --test-only``. It takes no notice of a closed partition, of
    its time limit and of dependencies, so the first two are looked up here by name.

    Args:
        cluster: the job's configuration.
        script: its batch script.

    Raises:
        ClusterError: an unknown or closed partition, too long a time, or what sbatch refuses.
    """
    chosen = _chosen(partitions_of(cluster), read_partitions())
    reasons = [_reason(cluster, partition) for partition in chosen]
    if reasons and all(reasons):
        raise ClusterError(reasons[0])
    # A list of partitions is refused where one of them is too small: each is asked for by itself.
    able = [each for each, reason in zip(chosen, reasons, strict=True) if not reason]
    refusals = []
    for partition in able if len(able) > 1 else [None]:
        named = [f"--partition={partition.name}"] if partition else []
        try:
            with outside_of_jobs(script):
                run_client("sbatch", "--test-only", *named, script=script)
            return
        except NoAnswerError:
            raise
        except ClusterError as error:
            refusals.append(error)
    raise ClusterError(f"{refusals[0]}: {_asked(cluster)}{_offered(chosen)}; {_WAY_AROUND}")


def read_partitions() -> list[Partition]:
    """Ask Slurm for its partitions.

    Raises:
        ClusterError: Slurm is not installed here, or gives no answer.
    """
    rows: dict[str, list[list[str]]] = {}
    # --exact: unlike nodes are not merged into "8+"; --all: hidden partitions take jobs, too.
    text = run_client("sinfo", "--noheader", "--all", "--exact", f"--format={_FIELDS}")
    lines, strange = split_rows(text, 6)
    warn_of("sinfo", strange)
    for name, *fields in lines:
        rows.setdefault(name, []).append(fields)
    return [_partition(name, fields) for name, fields in rows.items()]


def longest_array() -> int:
    """Return how many elements a job array of this cluster may have; Slurm's default without it."""
    if not has_client("scontrol"):
        return _DEFAULT_ARRAY
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", run_client("scontrol", "show", "config"))
    size = int(found[1]) if found else _DEFAULT_ARRAY
    if size < 1:
        raise ClusterError("this cluster takes no job arrays (MaxArraySize = 0)")
    return size


def check_notice(cluster: ClusterConfig) -> None:
    """Refuse a time limit that is over before a job has done anything.

    Raises:
        ClusterError: the job would be told to stop as soon as it begins.
    """
    if cluster.stop_before >= 60 * minutes_of(cluster.time):
        raise ClusterError(
            f"cluster.time={cluster.time} is not longer than cluster.stop_before="
            f"{cluster.stop_before} seconds, so the job would be told to stop as soon as it "
            "begins: take a longer time, or a shorter notice"
        )


def minutes_of(text: str) -> int:
    """Return the minutes of a time limit as Slurm writes it, seconds rounded up.

    Slurm reads ``90`` as minutes, ``90:00`` as minutes:seconds, ``1:30:00`` as
    hours:minutes:seconds, ``1-12`` as days-hours and ``1-12:30`` as days-hours:minutes.

    Raises:
        ClusterError: it is none.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise ClusterError(
            f"cluster.time={text} is no time limit: write [days-]hours:minutes:seconds, "
            "e.g. 24:00:00"
        )
    days, *fields = found.groups()
    numbers = [int(field) for field in fields if field is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # without days or three numbers, the first is minutes
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    total = 1440 * int(days or 0) + 60 * hours + minutes + math.ceil(seconds / 60)
    if total < 1:
        raise ClusterError(f"cluster.time={text} is no time at all: write e.g. 24:00:00")
    return total


def check_shared(folder: Path) -> None:
    """Refuse a folder in this machine's memory.

    Raises:
        ClusterError: the nodes of a cluster would not see it.
    """
    kind = file_system(folder)
    if kind in _IN_MEMORY:
        raise ClusterError(
            f"{folder} is in the memory of this machine ({kind}), where no node of the cluster "
            "sees it: take a folder on the shared file system"
        )


def file_system(folder: Path) -> str:
    """Return the kind of a folder's file system, also before the folder exists; "" if unknown."""
    path = folder.resolve()
    best = kind = ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in filter(None, mounts.split("\n")):
        _, point, name, *_ = line.split(" ")
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), point)
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name  # of mounts at one point the last one counts
    return kind


def _partition(name: str, rows: Sequence[Sequence[str]]) -> Partition:
    up, limit = rows[0][:2]
    try:
        minutes: float = minutes_of(limit)
    except ClusterError:  # infinite, or a limit that nobody can read
        minutes = math.inf
    nodes = [
        f"{count} nodes of {cpus} CPUs" + (f" and {gres}" if gres != "(null)" else "")
        for _, _, count, cpus, gres in rows
    ]
    return Partition(name.rstrip("*"), name.endswith("*"), up == "up", minutes, tuple(nodes))


def _chosen(names: Sequence[str], partitions: Sequence[Partition]) -> list[Partition]:
    known = {partition.name: partition for partition in partitions}
    if not names:
        return [partition for partition in partitions if partition.default]
    for name in names:
        if name not in known:
            raise ClusterError(
                f"cluster.partition={name} is no partition of this cluster: {nearest(name, known)}"
            )
    return [known[name] for name in names]


def _reason(cluster: ClusterConfig, partition: Partition) -> str:
    """Say why a partition cannot take a job although ``sbatch --test-only`` does; "" if it can."""
    name = partition.name
    if not partition.up:
        return (
            f"the partition {name} takes no jobs now (sinfo says why): take another, or "
            "cluster.check=false lets the job wait for it"
        )
    if minutes_of(cluster.time) > partition.minutes:
        return (
            f"cluster.time={cluster.time} is over the limit of the partition {name}, "
            f"{partition.minutes:g} minutes, so the job would wait for ever: take less, it resumes "
            "by itself; cluster.check=false where a QOS allows more"
        )
    return ""


def _asked(cluster: ClusterConfig) -> str:
    """Say what a job asks for."""
    tasks = cluster.tasks_of_node
    gpus = f" and {cluster.gpus_per_node} GPUs" if cluster.gpus_per_node else ""
    return (
        f"asked for {cluster.nodes} nodes with {tasks * cluster.cpus_per_task} CPUs ({tasks} tasks "
        f"x {cluster.cpus_per_task}){gpus} each"
    )


def _offered(partitions: Sequence[Partition]) -> str:
    """Say what partitions have; nothing where Slurm does not tell."""
    if not partitions:
        return ""
    phrases = [
        f"the partition {each.name} has {' and '.join(each.nodes[:_NAMED])}"
        for each in partitions[:_NAMED]
    ]
    gpus = any("gpu" in kind for each in partitions for kind in each.nodes)
    return f", {', '.join(phrases)}" + ("" if gpus else " (cluster.gpus_per_node=0: no GPUs)")
