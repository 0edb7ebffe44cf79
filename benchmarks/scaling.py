"""Images a second of 1, 2 and 4 processes, and what of a step goes into talking to each other.

    python -m benchmarks.scaling                                   # two minutes on two cores
    python -m benchmarks.scaling --width 64 --resolution 256 --batch 24 --processes 1 2 4 8

Weak scaling gives every process `--batch` images, strong scaling divides them. Each process
takes its steps twice: alone, next to the others but exchanging nothing, and together. What being
together costs, 1 - alone / together, is the share of communication: collectives that are not
hidden behind computing, and waiting for the slowest. With GPUs each process has its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.batches import Size, random_batch
from benchmarks.step import build_system
from t2i_hpc.common.process import keep_freed_memory
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training.step import Strategy, build_strategy, train_step
from t2i_hpc.training.world import World, choose_device

_ROW = "{:<10}{:<8}{:>10}{:>12}{:>10}{:>12}{:>11}{:>15}\n"
_TITLES = ("engine", "scaling", "processes", "batch each", "images/s", "efficiency")
_COSTS = ("ms a step", "communication")


@dataclass(frozen=True)
class Plan:
    """What each process does: `steps` timed ones after one that warms up.

    `clock` is ``wall`` or ``cpu``, the process's own time, which other work does not lengthen.
    """

    engine: str
    size: Size
    processes: int
    device: str
    precision: str
    steps: int
    threads: int
    clock: str = "wall"


@dataclass(frozen=True)
class Times:
    """Seconds of a step, the median: alone, and together."""

    alone: float
    together: float


def measure(plan: Plan) -> Times:
    """Start the processes; return the times of the slowest."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_one_process, (plan, folder), plan.processes)
        found = [torch.load(path) for path in Path(folder).glob("*.pt")]
    alone, together = torch.tensor(found).max(0).values.tolist()
    return Times(alone, together)


def _one_process(rank: int, plan: Plan, folder: str) -> None:
    torch.set_num_threads(plan.threads)
    device = choose_device(plan.device, rank)
    if device.type == "cpu":
        keep_freed_memory()
    # Before there is a group, nothing is exchanged.
    alone = _seconds(plan, World(0, 1, 0, 1, device), "ddp")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, f"file://{folder}/store", rank=rank, world_size=plan.processes)
    control = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
    world = World(rank, plan.processes, rank, plan.processes, device, control)
    together = _seconds(plan, world, plan.engine)
    torch.save([alone, together], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _seconds(plan: Plan, world: World, engine: str) -> float:
    """Return the median time of a step; the engine is gone afterwards."""
    config = EngineConfig(
        name=engine, batch_size=plan.size.batch * world.size, precision=plan.precision
    )
    system = build_system(plan.size)
    system.modules.to(world.device)
    built = build_strategy(system, world, config)
    times = [_step_seconds(built, plan, world) for _ in range(plan.steps + 1)]
    return float(torch.tensor(times[1:]).median())


def _step_seconds(strategy: Strategy, plan: Plan, world: World) -> float:
    batch, noise = random_batch(plan.size, strategy.system, world.device)
    world.barrier()
    clock = time.process_time if plan.clock == "cpu" else time.perf_counter
    start = clock()
    train_step(strategy, batch, noise)
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def rows(given: argparse.Namespace, engine: str, scaling: str) -> list[str]:
    """Measure every number of processes; return lines of the table."""
    lines, first = [], None
    for processes in given.processes:
        each = given.batch if scaling == "weak" else given.batch // processes
        size = Size(given.width, given.resolution, each, not given.without_damsm)
        times = measure(
            Plan(engine, size, processes, given.device, given.precision, given.steps, given.threads)
        )
        speed = each * processes / times.together
        first = first or speed / processes
        share = f"{max(0.0, 1 - times.alone / times.together):.0%}" if processes > 1 else "-"
        ratio = f"{speed / processes / first:.0%}"
        cells = (f"{speed:.1f}", ratio, f"{1000 * times.together:.0f}", share)
        lines.append(_ROW.format(engine, scaling, processes, each, *cells))
    return lines


def main(arguments: list[str]) -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Speed over processes, and what talking costs.")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--engines", nargs="+", default=["ddp", "deepspeed"])
    parser.add_argument("--scalings", nargs="+", default=["weak", "strong"])
    parser.add_argument("--width", type=int, default=4, help="ngf and ndf")
    parser.add_argument("--resolution", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=8, help="images, see above")
    parser.add_argument("--steps", type=int, default=5, help="timed ones")
    parser.add_argument("--threads", type=int, default=1, help="of torch, each process")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="fp32", help="fp32, tf32 or bf16")
    parser.add_argument("--without-damsm", action="store_true", help="leave DAMSM out")
    given = parser.parse_args(arguments)
    sys.stdout.write(_ROW.format(*_TITLES, *_COSTS))
    for engine in given.engines:
        for scaling in given.scalings:
            sys.stdout.writelines(rows(given, engine, scaling))
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
