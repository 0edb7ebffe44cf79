"""What precision, layout and compilation are worth on this GPU, for whole SSA-GAN training steps.

    python -m benchmarks.gpu                                   # nf 64, 256 px, batch 24 and 64
    python -m benchmarks.gpu --batches 24 --variants fp32 bf16

Each line is a fresh process: images a second, the largest memory that torch held, and MFU, the
share of the GPU's peak: a step's floating-point operations, as torch counts them in float32
eager, by the seconds of a step and the peak of dense products in the variant's arithmetic.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.batches import Size, random_batch
from benchmarks.step import build_system, count_flops
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World

_COMPILED = ["generator", "image_encoder"]
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "bf16+channels_last": {"precision": "bf16", "channels_last": True},
    "bf16+channels_last+compile": {
        "precision": "bf16",
        "channels_last": True,
        "compile": _COMPILED,
    },
}
# Dense TFLOP/s of fp32, tf32 and bf16 products by a part of the name, from the makers' sheets.
PEAKS = {
    "H200": (67.0, 494.7, 989.4),
    "H100 PCIe": (51.0, 378.0, 756.0),
    "H100": (67.0, 494.7, 989.4),
    "A100": (19.5, 156.0, 312.0),
    "L40S": (91.6, 183.0, 362.0),
    "RTX 4090": (82.6, 82.6, 165.2),
    "RTX 3090": (35.6, 35.6, 71.0),
}
_ROW = "{:<28}{:>7}{:>11}{:>13}{:>8}\n"
_WARM_UP = 3


@dataclass(frozen=True)
class Speed:
    """Of one variant: median seconds of a step, bytes of memory at most; 0: it did not fit."""

    seconds: float
    memory: int


def measure(variant: str, size: Size, steps: int, device: torch.device) -> Speed:
    """Train `steps` steps after a warm-up; memory is counted on GPUs only."""
    config = EngineConfig(batch_size=size.batch, **VARIANTS[variant])
    system = build_system(size)
    system.modules.to(device)
    torch.backends.cudnn.benchmark = True
    strategy = DDPStrategy(system, World(0, 1, 0, 1, device), config)
    batch, noise = random_batch(size, system, device)
    times = []
    for _ in range(_WARM_UP + steps):
        start = time.perf_counter()
        train_step(strategy, batch, noise)
        strategy.nonfinite.pop_first(float("inf"))  # as the loop does; waits for the step
        times.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Speed(float(torch.tensor(times[_WARM_UP:]).median()), memory)


def flops_per_image(size: Size, device: torch.device) -> float:
    """Return the floating-point operations of a step in float32, by its images."""
    small = Size(size.width, size.resolution, 4, size.damsm)
    system = build_system(small)
    system.modules.to(device)
    strategy = DDPStrategy(system, World(0, 1, 0, 1, device), EngineConfig(batch_size=4))
    batch, noise = random_batch(small, system, device)
    return count_flops(lambda: train_step(strategy, batch, noise)) / 4


def peak(name: str, precision: str) -> float | None:
    """Return a GPU's dense FLOP/s in an arithmetic; None where it is not known here."""
    for part, values in PEAKS.items():
        if part in name:
            return 1e12 * values[("fp32", "tf32", "bf16").index(precision)]
    return None


def measure_apart(variant: str, batch: int, arguments: list[str]) -> Speed | None:
    """Measure one line in a fresh process; None where memory was too small."""
    own = ["--variant", variant, "--batches", str(batch)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments, *own],
        check=False,
        capture_output=True,
        text=True,
    )
    if "OutOfMemoryError" in done.stderr:
        return None
    if done.returncode:
        raise RuntimeError(done.stderr)
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Speed(**values)


def line(variant: str, batch: int, speed: Speed | None, flops: float, name: str) -> str:
    """Return a line of the table."""
    if speed is None:
        return _ROW.format(variant, batch, "-", "too little", "-")
    top = peak(name, VARIANTS[variant]["precision"])
    share = f"{flops * batch / speed.seconds / top:.1%}" if top else "-"
    memory = f"{speed.memory / 2**30:.1f}"
    return _ROW.format(variant, batch, f"{batch / speed.seconds:.1f}", memory, share)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Speed, memory and MFU of SSA-GAN on this GPU.")
    parser.add_argument("--width", type=int, default=64, help="ngf and ndf")
    parser.add_argument("--resolution", type=int, default=256, help="pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[24, 64], help="images")
    parser.add_argument("--steps", type=int, default=10, help="timed ones")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--without-damsm", action="store_true", help="leave DAMSM out")
    parser.add_argument("--variant", choices=VARIANTS, help="measure one alone, print JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Measure every variant at every batch size, and print."""
    given = parse(arguments)
    if not torch.cuda.is_available():
        sys.stdout.write("no GPU here: nothing to measure\n")
        return
    size = Size(given.width, given.resolution, given.batches[0], not given.without_damsm)
    device = torch.device("cuda")
    if given.variant:
        sys.stdout.write(json.dumps(asdict(measure(given.variant, size, given.steps, device))))
        return
    name = torch.cuda.get_device_name()
    flops = flops_per_image(size, device)
    torch.cuda.empty_cache()
    sys.stdout.write(f"{name}, torch {torch.__version__}, {flops / 1e9:.0f} GFLOP an image\n")
    sys.stdout.write(_ROW.format("variant", "batch", "images/s", "memory GiB", "MFU"))
    for batch in given.batches:
        for variant in given.variants:
            speed = measure_apart(variant, batch, arguments)
            sys.stdout.write(line(variant, batch, speed, flops, name))
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
