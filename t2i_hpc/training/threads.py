"""How many CPU threads a rank computes on: its cores, or one where that is quicker.

Threads of one operation wait for each other, so next to other work, or where waking a thread takes
long, several are slower than one (``benchmarks/busy.py``). A new run measures that on convolutions
for a second. Sums are split among threads, so a run keeps its number: a resume is bit-identical.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from t2i_hpc.common.files import write_json
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training.world import World, share_text

_FILE = "threads.json"
_SECONDS = 0.4  # of measuring each number
_IMAGES = 4  # for each thread, so that many threads have work
_CHANNELS, _SIZE = 16, 32  # of convolutions as a small GAN has them


def settle_threads(
    run: Path, config: EngineConfig, world: World, say: Callable[[str], None]
) -> None:
    """Let this rank compute on all its cores or on one thread; a collective call.

    Nothing is done where the configuration names a number, or where a GPU computes.

    Args:
        run: the run directory, which need not be there yet.
        config: of the engine.
        world: whose ranks all take one number.
        say: prints that cores are left unused.
    """
    cores = torch.get_num_threads()
    if config.threads or world.device.type != "cpu" or cores == 1:
        return
    kept = share_text(world, str(_kept(run, world.size) or "") if world.is_main else "")
    if kept:
        torch.set_num_threads(min(cores, int(kept)))
        return
    chosen = int(share_text(world, str(_quickest(cores))))
    torch.set_num_threads(chosen)
    if chosen < cores:
        say(
            f"one CPU thread a rank: {cores} were slower just now, as next to other work; "
            f"engine.threads={cores} takes them all the same"
        )


def keep_threads(run: Path, config: EngineConfig, world: World) -> None:
    """Write down for later sessions of a run what :func:`settle_threads` chose."""
    if config.threads or world.device.type != "cpu" or _kept(run, world.size):
        return
    write_json(run / _FILE, {"ranks": world.size, "threads": torch.get_num_threads()})


def _kept(run: Path, ranks: int) -> int | None:
    """Return the number of earlier sessions with as many ranks."""
    try:
        found = json.loads((run / _FILE).read_text())
        return int(found["threads"]) if found["ranks"] == ranks else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _quickest(cores: int) -> int:
    taken = {}
    for threads in (cores, 1):
        torch.set_num_threads(threads)
        taken[threads] = _seconds_a_step(_IMAGES * cores)
    return cores if taken[cores] <= taken[1] else 1


def _seconds_a_step(count: int) -> float:
    """Return the median time of convolutions over `count` images and of their gradients."""
    images = torch.ones(count, _CHANNELS, _SIZE, _SIZE, requires_grad=True)
    weight = torch.ones(_CHANNELS, _CHANNELS, 3, 3, requires_grad=True)
    times: list[float] = []
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end or not times:
        start = time.perf_counter()
        for _ in range(4):
            hidden = F.relu(F.conv2d(images, weight, padding=1))
            torch.autograd.grad(F.conv2d(hidden, weight, padding=1).sum(), (images, weight))
        times.append(time.perf_counter() - start)
    return statistics.median(times)
