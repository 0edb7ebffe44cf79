"""Looks at devices and network before any work is done, so that a bad node is named at once."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist

from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.training.place import Place


def check_devices(place: Place, device: torch.device, control: dist.ProcessGroup) -> None:
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


def check_group(place: Place, device: torch.device) -> None:
    """Add up one number over all ranks where the training will; a collective call.

    Raises:
        RunError: names this rank's node.
    """
    here = f"rank {place.rank} on {socket.gethostname()} ({device})"
    try:
        total = torch.ones(1, device=device)
        dist.all_reduce(total)
        found = int(total)
    except (dist.DistError, RuntimeError) as error:
        raise RunError(
            f"{here} failed in the first all-reduce of {place.size} ranks "
            f"({str(error).splitlines()[0]}): look at that node's GPU and network "
            "(nvidia-smi; NCCL_DEBUG=INFO says more; NCCL_SOCKET_IFNAME= names the network's "
            "interface), and leave it out with cluster.exclude="
        ) from error
    if found != place.size:
        raise RunError(
            f"{here} computed {found} in the first all-reduce, not {place.size}: its GPU or "
            "network does not work; leave that node out with cluster.exclude="
        )
