"""What a cluster offers, and refusals of what it has not, before anything is in the queue."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from t2i_hpc.cluster.slurm.client import run_client
from t2i_hpc.common.errors import ClusterError, nearest
from t2i_hpc.config.cluster import ClusterConfig

_FIELDS = "%P|%a|%l|%D|%c|%G"
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_GPUS = re.compile(r"gpu:(?:[^:,()]+:)?(\d+)")
_DEFAULT_ARRAY = 1001


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike: how many, and CPUs and GPUs of each."""

    count: int
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Partition:
    """One queue of the cluster.

    Attributes:
        name: as sbatch takes it.
        default: whether it is taken where none is named.
        up: whether it takes jobs.
        minutes: longest time limit of a job; infinite where there is none.
        nodes: what it consists of.
    """

    name: str
    default: bool
    up: bool
    minutes: float
    nodes: tuple[Nodes, ...]

    @property
    def size(self) -> int:
        """Number of nodes."""
        return sum(nodes.count for nodes in self.nodes)


def read_partitions() -> list[Partition]:
    """Ask Slurm for its partitions.

    Raises:
        ClusterError: Slurm is not installed here, or gives no answer.
    """
    rows: dict[str, list[list[str]]] = {}
    for line in run_client("sinfo", "--noheader", f"--format={_FIELDS}").splitlines():
        name, *fields = line.split("|", 5)
        rows.setdefault(name, []).append(fields)
    return [_partition(name, fields) for name, fields in rows.items()]


def check_resources(cluster: ClusterConfig, partitions: Sequence[Partition]) -> None:
    """Refuse what no named partition can give.

    Raises:
        ClusterError: an unknown or closed partition, too many nodes, CPUs or GPUs, too long.
    """
    chosen = _chosen(cluster.partition, partitions)
    reasons = [_reason(cluster, partition) for partition in chosen]
    if reasons and all(reasons):
        raise ClusterError(reasons[0])


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
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # without days or three numbers, the first is minutes
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    total = 1440 * int(days or 0) + 60 * hours + minutes + math.ceil(seconds / 60)
    if total < 1:
        raise ClusterError(f"cluster.time={text} is no time at all: write e.g. 24:00:00")
    return total


def longest_array() -> int:
    """Return how many elements a job array of this cluster may have."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", run_client("scontrol", "show", "config"))
    size = int(found[1]) if found else _DEFAULT_ARRAY
    if size < 1:
        raise ClusterError("this cluster takes no job arrays (MaxArraySize = 0)")
    return size


def _partition(name: str, rows: Sequence[Sequence[str]]) -> Partition:
    up, limit = rows[0][:2]
    nodes = [
        Nodes(int(count), int(cpus.rstrip("+")), _gpus(gres)) for _, _, count, cpus, gres in rows
    ]
    minutes = math.inf if limit in ("infinite", "n/a") else minutes_of(limit)
    return Partition(name.rstrip("*"), name.endswith("*"), up == "up", minutes, tuple(nodes))


def _gpus(resources: str) -> int:
    """Count GPUs in e.g. ``gpu:a100:4(S:0-1),nvme:1``."""
    return sum(int(number) for number in _GPUS.findall(resources))


def _chosen(names: str, partitions: Sequence[Partition]) -> list[Partition]:
    known = {partition.name: partition for partition in partitions}
    if not names:
        return [partition for partition in partitions if partition.default]
    for name in names.split(","):
        if name not in known:
            raise ClusterError(
                f"cluster.partition={name} is no partition of this cluster: {nearest(name, known)}"
            )
    return [known[name] for name in names.split(",")]


def _reason(cluster: ClusterConfig, partition: Partition) -> str:
    """Say why a partition cannot take the job; empty if it can."""
    name, cpus = partition.name, cluster.cpus_per_task * cluster.tasks_of_node
    if not partition.up:
        return f"the partition {name} takes no jobs now (sinfo says why): take another"
    if cluster.nodes > partition.size:
        return f"cluster.nodes={cluster.nodes}, but the partition {name} has {partition.size}"
    if minutes_of(cluster.time) > partition.minutes:
        return (
            f"cluster.time={cluster.time} is over the limit of the partition {name}, "
            f"{partition.minutes:g} minutes: take less, the job goes on by itself"
        )
    if _count(partition, cpus=0, gpus=cluster.gpus_per_node) < cluster.nodes:
        most = max(nodes.gpus for nodes in partition.nodes)
        return (
            f"cluster.gpus_per_node={cluster.gpus_per_node}, but nodes of the partition {name} "
            f"have {most} GPUs at most" + (" (0 asks for a job on CPUs)" if not most else "")
        )
    if _count(partition, cpus=cpus, gpus=cluster.gpus_per_node) < cluster.nodes:
        most = max(nodes.cpus for nodes in partition.nodes)
        return (
            f"{cluster.tasks_of_node} tasks a node with cluster.cpus_per_task="
            f"{cluster.cpus_per_task} want {cpus} CPU cores, but nodes of the partition {name} "
            f"have {most} at most"
        )
    return ""


def _count(partition: Partition, *, cpus: int, gpus: int) -> int:
    """Count the nodes that have so much of both."""
    return sum(n.count for n in partition.nodes if n.cpus >= cpus and n.gpus >= gpus)
