"""Which rank am I, of how many, on which device; and what ranks tell each other.

One context answers for every launcher (torchrun, srun, MPI or nothing), so a task never cares who
started it. With one rank there is no process group at all. With several, a heartbeat watches over
them, and before any work they find out whether each has a device of its own and whether the first
all-reduce works, so that a bad node is named at once.

An error that stops one rank alone leaves the others waiting in their next collective, so errors
are shared first and raised everywhere (:func:`raise_together`).
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from t2i_hpc.cluster.network import GLOO, choose_interface
from t2i_hpc.common.collectives import all_reduce, use_group
from t2i_hpc.common.errors import TRAINING_REMEDIES, ConfigurationError, RunError, memory_explained
from t2i_hpc.common.process import keep_freed_memory
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training.heartbeat import Heartbeat, start_heartbeat
from t2i_hpc.training.heartbeat_device import device_clock, let_heartbeat_be_first
from t2i_hpc.training.rank_info import RankInfo, find_rank

_NAME_BYTES = 256  # longer than any host's name


@dataclass
class Stage:
    """The stage of a rank, e.g. "step 12, phase generator"."""

    name: str = "its start"


@dataclass(frozen=True)
class World:
    """This process's place among all ranks.

    Attributes:
        rank, size: over all nodes.
        local_rank, local_size: on this node.
        device: where this rank computes.
        control: group of CPU ranks for decisions (None with one rank).
        heartbeat: names a rank that is lost (None with one rank).
        stage: of this rank.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    heartbeat: Heartbeat | None = None
    stage: Stage = field(default_factory=Stage, compare=False)

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

    def set_stage(self, stage: str) -> None:
        """Say what all ranks begin to do, e.g. "saving"; errors about lost ranks name it."""
        self.stage.name = stage
        if self.heartbeat is not None:
            self.heartbeat.set_stage(stage)

    def mark_device(self, place: str) -> None:
        """Leave a mark within the stage: which rank's device never comes past it can be told."""
        if self.heartbeat is not None:
            self.heartbeat.mark_device(f"{self.stage.name}, {place}")

    def memory_explained(self, remedies: str) -> AbstractContextManager[None]:
        """Turn out-of-memory errors into a sentence with rank, stage and device.

        Args:
            remedies: what to do, as the end of the sentence.
        """
        return memory_explained(self._place, self.device, remedies)

    def _place(self) -> str:
        return f"rank {self.rank} on {socket.gethostname()} at {self.stage.name}"

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.control is not None:
            dist.barrier(group=self.control)


@contextlib.contextmanager
def joined_world(config: EngineConfig, remedies: str = TRAINING_REMEDIES) -> Iterator[World]:
    """Join the process group this process was started for, and destroy it at the end.

    Args:
        config: device, threads and timeout.
        remedies: what to do where memory runs out, as the end of a sentence.

    Raises:
        OutOfMemoryError: names rank, stage and device.
        ConfigurationError: the device asked for is not there.
    """
    place = find_rank(os.environ)
    device = choose_device(config.device, place.local_rank)
    _limit_threads(config.threads, place.local_size)
    if device.type == "cpu":
        keep_freed_memory()
    if place.size == 1:
        world = World(0, 1, 0, 1, device)
        with world.memory_explained(remedies):
            yield world
        return
    control = _join(place, device, config.timeout)
    heartbeat = start_heartbeat(
        place.rank,
        place.size,
        place.address,
        config.timeout,
        control,
        clock=device_clock(device),
    )
    try:
        check_devices(place, device, control)
        check_group(place, device)
        world = World(
            place.rank, place.size, place.local_rank, place.local_size, device, control, heartbeat
        )
        with world.memory_explained(remedies):
            yield world
    except BaseException as error:
        heartbeat.close(error)
        _destroy_group()
        raise
    _destroy_group()
    heartbeat.close()


def _destroy_group() -> None:
    use_group(None)
    # gloo can abort at interpreter exit while a wrapped module still holds the group.
    gc.collect()
    dist.destroy_process_group()


def _join(place: RankInfo, device: torch.device, timeout: float) -> dist.ProcessGroup:
    # Twice the timeout: the heartbeat, which knows more, reports before a collective fails.
    limit = datetime.timedelta(seconds=2 * timeout)
    choose_interface(place.address, os.environ, local=place.size == place.local_size)
    let_heartbeat_be_first(os.environ, timeout)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{place.address}:{place.port}",
            rank=place.rank,
            world_size=place.size,
            timeout=limit,
        )
        control = dist.new_group(backend="gloo", timeout=limit)
        exchange = dist.new_group(timeout=limit)  # statistics do not queue behind gradients
    except (dist.DistError, RuntimeError) as error:
        raise RunError(
            f"rank {place.rank} on {socket.gethostname()} did not meet all {place.size} ranks at "
            f"{place.address}:{place.port} ({str(error).splitlines()[0]}) by the network "
            f"interface {os.environ.get(GLOO, 'of its name')}: see whether every rank was started "
            f"and whether its node reaches that address; {GLOO}= names another interface, "
            "NCCL_SOCKET_IFNAME= that of GPUs"
        ) from error
    if not isinstance(control, dist.ProcessGroup) or not isinstance(exchange, dist.ProcessGroup):
        raise ConfigurationError("torch.distributed gave no group for decisions and statistics")
    use_group(exchange)
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
    visible = torch.cuda.device_count()
    number = 0 if visible == 1 else local_rank  # a batch system may show each rank its own GPU
    if number >= visible:
        raise ConfigurationError(
            f"local rank {local_rank} on {socket.gethostname()} has no GPU of its own: "
            f"{visible} are visible; start one process a GPU"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _limit_threads(threads: int | None, local_size: int) -> None:
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads or max(1, cores // local_size))


def check_devices(place: RankInfo, device: torch.device, control: dist.ProcessGroup) -> None:
    """Refuse two ranks on one GPU; a collective call.

    Raises:
        ConfigurationError: names the ranks and their GPU.
    """
    if device.type != "cuda":
        return
    own = f"GPU {torch.cuda.get_device_properties(device).uuid} of {socket.gethostname()}"
    devices: list[str] = [""] * place.size
    dist.all_gather_object(devices, own, group=control)
    refuse_shared(devices)


def refuse_shared(devices: Sequence[str]) -> None:
    """Refuse two ranks on one device.

    Args:
        devices: a unique name of each rank's.

    Raises:
        ConfigurationError: names the ranks and their device.
    """
    ranks: defaultdict[str, list[str]] = defaultdict(list)
    for rank, device in enumerate(devices):
        ranks[device].append(str(rank))
    for device, shared in ranks.items():
        if len(shared) > 1:
            raise ConfigurationError(
                f"ranks {' and '.join(shared)} are both on {device}: start one process a GPU "
                "(cluster.tasks_per_node=, or srun's --ntasks-per-node and --gpus-per-node)"
            )


def check_group(place: RankInfo, device: torch.device) -> None:
    """All-reduce one number on the device that trains, by both its groups; a collective call.

    Raises:
        RunError: names this rank's node.
    """
    here = f"rank {place.rank} on {socket.gethostname()} ({device})"
    try:
        totals = torch.ones(2, device=device)
        dist.all_reduce(totals[0])
        all_reduce(totals[1])
        wrong = [number for number in totals.tolist() if number != place.size]
    except (dist.DistError, RuntimeError) as error:
        raise RunError(
            f"{here} failed in the first all-reduce of {place.size} ranks "
            f"({str(error).splitlines()[0]}): check that node's GPU and network "
            "(nvidia-smi; NCCL_DEBUG=INFO says more; NCCL_SOCKET_IFNAME= names the network's "
            "interface), and leave it out with cluster.exclude="
        ) from error
    if wrong:
        raise RunError(
            f"{here} computed {wrong[0]:.0f} in the first all-reduce, not {place.size}: its GPU or "
            "network does not work; leave that node out with cluster.exclude="
        )


def gather_hosts(world: World) -> tuple[str, ...]:
    """Return the names of the nodes, in order of their ranks, each once; a collective call."""
    own = socket.gethostname()
    if world.control is None:
        return (own,)
    mine = torch.zeros(_NAME_BYTES, dtype=torch.uint8)
    name = torch.tensor(list(own.encode()[:_NAME_BYTES]), dtype=torch.uint8)
    mine[: len(name)] = name
    names = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(names, mine, group=world.control)
    return tuple(dict.fromkeys(bytes(each.tolist()).rstrip(b"\0").decode() for each in names))


def share_text(world: World, text: str, source: int = 0) -> str:
    """Return on every rank the text that rank `source` gives; a collective call."""
    if world.control is None:
        return text
    content = torch.tensor(list(text.encode()), dtype=torch.uint8)
    length = torch.tensor([len(content)])
    dist.broadcast(length, source, group=world.control)
    if world.rank != source:
        content = torch.empty(int(length), dtype=torch.uint8)
    if int(length):
        dist.broadcast(content, source, group=world.control)
    return bytes(content.tolist()).decode()


def raise_together(world: World, error: Exception | None) -> None:
    """Raise on every rank if any rank has an error; a collective call.

    Raises:
        Exception: this rank's own error.
        RunError: what the first rank that has one says.
    """
    if world.control is not None:
        first = torch.tensor([world.size if error is None else world.rank])
        dist.all_reduce(first, dist.ReduceOp.MIN, group=world.control)
        if int(first) < world.size:
            text = share_text(world, str(error), int(first))
            error = error or RunError(text)
    if error is not None:
        raise error
