"""Which rank am I, of how many, on which device: from torchrun, srun or nothing.

One function answers for every launcher, so that a task never cares who started it. With one
rank there is no process group at all. With several, a lifeline watches over them.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from t2i_hpc.common.allocator import keep_freed_memory
from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.engine.stops.lifeline import Lifeline
from t2i_hpc.engine.stops.lifeline_ends import tie_lifeline

_FIRST_PORT, _PORTS = 20_000, 20_000


@dataclass(frozen=True)
class World:
    """This process's place among all ranks.

    Attributes:
        rank, size: over all nodes.
        local_rank, local_size: on this node.
        device: where this rank computes.
        control: group of CPU ranks for decisions (None with one rank).
        lifeline: names a rank that is lost (None with one rank).
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    lifeline: Lifeline | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and progress."""
        return self.rank == 0

    def agree(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any rank raised it; a collective call."""
        if self.control is None:
            return list(flags)
        raised = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self.control)
        return [bool(flag) for flag in raised]

    def doing(self, what: str) -> None:
        """Say what all ranks begin to do now, e.g. "saving"; errors about lost ranks name it."""
        if self.lifeline is not None:
            self.lifeline.doing(what)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.control is not None:
            dist.barrier(group=self.control)


@dataclass(frozen=True)
class Place:
    """What the launcher's environment says."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0


def find_place(environment: Mapping[str, str]) -> Place:
    """Read the rank from torchrun's variables, else from srun's, else one rank alone."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = int(environment["WORLD_SIZE"])
        return Place(
            int(environment["RANK"]),
            size,
            int(environment.get("LOCAL_RANK", "0")),
            int(environment.get("LOCAL_WORLD_SIZE", size)),
            environment.get("MASTER_ADDR", "127.0.0.1"),
            int(environment.get("MASTER_PORT", "0")),
        )
    if "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        return _srun_place(environment)
    return Place()


def _srun_place(environment: Mapping[str, str]) -> Place:
    job = int(environment["SLURM_JOB_ID"]) * 64 + int(environment["SLURM_STEP_ID"]) % 64
    per_node = environment["SLURM_STEP_TASKS_PER_NODE"]
    node = int(environment.get("SLURM_NODEID", "0"))
    return Place(
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_NTASKS"]),
        int(environment["SLURM_LOCALID"]),
        expand_tasks(per_node)[node],
        first_node(environment["SLURM_STEP_NODELIST"]),
        _FIRST_PORT + job % _PORTS,
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


@contextlib.contextmanager
def joined_world(config: EngineConfig) -> Iterator[World]:
    """Join the process group this process was started for, and leave it at the end.

    Raises:
        ConfigurationError: the device asked for is not there.
    """
    place = find_place(os.environ)
    device = choose_device(config.device, place.local_rank)
    _limit_threads(config.threads, place.local_size)
    if device.type == "cpu":
        keep_freed_memory()
    if place.size == 1:
        yield World(0, 1, 0, 1, device)
        return
    control = _join(place, device, config.timeout)
    life = tie_lifeline(place.rank, place.size, place.address, config.timeout, control)
    try:
        yield World(
            place.rank, place.size, place.local_rank, place.local_size, device, control, life
        )
    except BaseException as error:
        life.close(error)
        _leave_group()
        raise
    _leave_group()
    life.close()


def _leave_group() -> None:
    # gloo can abort at interpreter exit while a wrapped module still holds the group.
    gc.collect()
    dist.destroy_process_group()


def _join(place: Place, device: torch.device, timeout: float) -> dist.ProcessGroup:
    # Twice the timeout: the lifeline, which knows more, is to speak before a collective does.
    limit = datetime.timedelta(seconds=2 * timeout)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{place.address}:{place.port}",
            rank=place.rank,
            world_size=place.size,
            timeout=limit,
        )
        control = dist.new_group(backend="gloo", timeout=limit)
    except (dist.DistError, RuntimeError) as error:
        raise RunError(
            f"rank {place.rank} on {socket.gethostname()} did not meet all {place.size} ranks at "
            f"{place.address}:{place.port} ({str(error).splitlines()[0]}): see whether every rank "
            "was started and whether its node reaches that address"
        ) from error
    if not isinstance(control, dist.ProcessGroup):
        raise ConfigurationError("torch.distributed gave no group for decisions")
    return control


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn auto, cpu or cuda into this rank's device.

    Raises:
        ConfigurationError: cuda without a GPU, or more ranks than GPUs on the node.
    """
    available = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise ConfigurationError("device=cuda, but torch sees no GPU here; take device=cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigurationError(
            f"local rank {local_rank} on {socket.gethostname()} has no GPU of its own: "
            f"{torch.cuda.device_count()} are visible; start one process a GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _limit_threads(threads: int | None, local_size: int) -> None:
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads or max(1, cores // local_size))
