"""This process's rank, as the launcher's environment tells it.

torchrun, srun and MPI each have variables of their own; without any of them there is one rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from t2i_hpc.cluster.network import ports
from t2i_hpc.common.errors import ConfigurationError


@dataclass(frozen=True)
class _Names:
    """How a kind of MPI calls things."""

    rank: str
    size: str
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]


_OPEN_MPI = _Names(
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    ("OMPI_COMM_WORLD_LOCAL_RANK",),
    ("OMPI_COMM_WORLD_LOCAL_SIZE",),
)
_PMI = _Names(
    "PMI_RANK",
    "PMI_SIZE",
    ("PMI_LOCAL_RANK", "MPI_LOCALRANKID"),
    ("PMI_LOCAL_SIZE", "MPI_LOCALNRANKS"),
)


@dataclass(frozen=True)
class RankInfo:
    """What the launcher's environment says."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0


def find_rank(environment: Mapping[str, str]) -> RankInfo:
    """Read the rank from torchrun's variables, else from srun's or MPI's, else one rank alone.

    Raises:
        ConfigurationError: MPI started several ranks, but none knows where they meet; or
            torchrun's variables are of another training than srun's tasks.
    """
    tasks = int(environment.get("SLURM_NTASKS", "1")) if "SLURM_STEP_ID" in environment else 1
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = int(environment["WORLD_SIZE"])
        if size < tasks:  # each task would train alone, and write into the same run
            raise ConfigurationError(
                f"srun started {tasks} tasks, but RANK={environment['RANK']} and WORLD_SIZE={size} "
                "are in the environment, from another launcher or a shell's start-up file: unset "
                "RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT before srun"
            )
        return RankInfo(
            int(environment["RANK"]),
            size,
            int(environment.get("LOCAL_RANK", "0")),
            int(environment.get("LOCAL_WORLD_SIZE", size)),
            environment.get("MASTER_ADDR", "127.0.0.1"),
            int(environment.get("MASTER_PORT", "0")),
        )
    # mpirun inside a Slurm job starts its helpers by srun: then MPI's variables are the ranks'.
    if _OPEN_MPI.rank in environment:
        return _mpi_rank(environment, _OPEN_MPI)
    processes = int(environment.get(_PMI.size, "1"))
    if tasks > 1 and processes in (1, tasks):
        return _srun_rank(environment)
    return _mpi_rank(environment, _PMI) if processes > 1 else RankInfo()


def _mpi_rank(environment: Mapping[str, str], names: _Names) -> RankInfo:
    size = int(environment[names.size])
    if size == 1:
        return RankInfo()
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise ConfigurationError(
            f"MPI started {size} ranks, but {' and '.join(missing)} do not say where they meet: "
            "give the first node's name and a free port to all, e.g. mpirun -x "
            "MASTER_ADDR=$(hostname) -x MASTER_PORT=29500"
        )
    return RankInfo(
        int(environment[names.rank]),
        size,
        _first_number(environment, names.local_rank, "0"),
        _first_number(environment, names.local_size, str(size)),
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
    )


def _first_number(environment: Mapping[str, str], names: tuple[str, ...], default: str) -> int:
    return int(next((environment[name] for name in names if name in environment), default))


def _srun_rank(environment: Mapping[str, str]) -> RankInfo:
    job = int(environment["SLURM_JOB_ID"]) * 64 + int(environment["SLURM_STEP_ID"]) % 64
    per_node = environment["SLURM_STEP_TASKS_PER_NODE"]
    node = int(environment.get("SLURM_NODEID", "0"))
    return RankInfo(
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_NTASKS"]),
        int(environment["SLURM_LOCALID"]),
        expand_tasks(per_node)[node],
        first_node(environment["SLURM_STEP_NODELIST"]),
        ports()[job % len(ports())],
    )


def expand_tasks(text: str) -> list[int]:
    """Expand Slurm's tasks per node, e.g. ``2(x3),1`` → [2, 2, 2, 1]."""
    counts: list[int] = []
    for match in re.finditer(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_node(nodes: str) -> str:
    """Return the first host of a Slurm node list, e.g. ``gpu[03-05,9],x1`` → gpu03."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    if match is None:
        raise ConfigurationError(f"cannot read Slurm's node list {nodes!r}")
    return match[1] + (match[2] or "") + (match[3] or "")
