"""What one SSA-GAN step costs, ours against the plain order of operations of the released code.

    python -m benchmarks.step                              # nf 64, 256 px, batch 4: two minutes
    python -m benchmarks.step --width 8 --resolution 64    # seconds

Each variant runs in a process of its own: the first step is counted by torch's FLOP counter,
the second is timed, and the largest resident memory is the process's. The losses and weights
of both are equal (tests/systems/test_step_equality.py).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.batches import VOCABULARY, Size, random_batch
from benchmarks.plain_step import PlainStep
from t2i_hpc.common.process import keep_freed_memory
from t2i_hpc.config.one_stage_settings import SSAGANConfig
from t2i_hpc.models.image_encoder import build_image_encoder
from t2i_hpc.systems.encoders import scale_images
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.training.cost import count_flops
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World

__all__ = ["build_step", "build_system", "count_flops"]  # what other benchmarks and tests take

VARIANTS = ("plain", "ours")
_ROW = "{:<8}{:>18}{:>18}{:>18}\n"


@dataclass(frozen=True)
class Cost:
    """Of one step: floating-point operations, seconds of CPU, bytes of the process's peak."""

    flops: int
    seconds: float
    memory: int


def build_system(size: Size) -> OneStageGAN:
    """Build SSA-GAN with random weights, DAMSM by Inception-v3 included where it is asked for."""
    torch.manual_seed(0)
    config = SSAGANConfig(
        resolution=size.resolution,
        generator_width=size.width,
        discriminator_width=size.width,
        mask_width=size.mask_width,
        discriminator_schedule=size.schedule,
    )
    if not size.damsm:
        config.damsm.weight = 0.0
        return OneStageGAN(config, VOCABULARY)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "image_encoder.safetensors"
        save_file(build_image_encoder("inception_v3", 256).state_dict(), path)
        config.image_encoder.weights = str(path)
        return OneStageGAN(config, VOCABULARY)


def build_step(variant: str, size: Size) -> Callable[[], object]:
    """Return a function that runs one training step on random samples."""
    system = build_system(size)
    batch, noise = random_batch(size, system, torch.device("cpu"))
    if variant == "ours":
        strategy = DDPStrategy(system, World(0, 1, 0, 1, torch.device("cpu")))
        return lambda: train_step(strategy, batch, noise)
    plain, images = PlainStep(system), scale_images(batch.images)
    return lambda: plain.run(images, batch.tokens, batch.lengths, batch.classes, noise)


def measure(variant: str, size: Size, threads: int) -> Cost:
    """Measure one variant in this process."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as training does
    step = build_step(variant, size)
    flops = count_flops(step)
    start = time.process_time()
    step()
    seconds = time.process_time() - start
    return Cost(flops, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measure_apart(variant: str, arguments: list[str]) -> Cost:
    """Measure one variant in a fresh process, started with the same `arguments`."""
    command = [sys.executable, "-m", "benchmarks.step", *arguments, "--variant", variant]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    values: dict[str, Any] = json.loads(done.stdout)
    return Cost(**values)


def table(costs: dict[str, Cost], batch: int) -> str:
    """Return the comparison as lines of text, last the ratio of ours to plain."""
    lines = [_ROW.format("step", "GFLOP per image", "CPU s per step", "peak memory GiB")]
    for name, cost in costs.items():
        giga = f"{cost.flops / batch / 1e9:.1f}"
        lines.append(_ROW.format(name, giga, f"{cost.seconds:.2f}", f"{cost.memory / 2**30:.2f}"))
    ours, plain = asdict(costs["ours"]), asdict(costs["plain"])
    lines.append(_ROW.format("ratio", *(f"{ours[key] / plain[key]:.3f}" for key in ours)))
    return "".join(lines)


def main(arguments: list[str]) -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Cost of one SSA-GAN step, ours and plain.")
    parser.add_argument("--width", type=int, default=Size.width, help="ngf and ndf")
    parser.add_argument("--resolution", type=int, default=Size.resolution, help="pixels")
    parser.add_argument("--batch", type=int, default=Size.batch, help="images")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--without-damsm", action="store_true", help="leave DAMSM out")
    parser.add_argument("--variant", choices=VARIANTS, help="measure one alone, print JSON")
    given = parser.parse_args(arguments)
    if given.variant:
        size = Size(given.width, given.resolution, given.batch, not given.without_damsm)
        sys.stdout.write(json.dumps(asdict(measure(given.variant, size, given.threads))))
        return
    costs = {variant: measure_apart(variant, arguments) for variant in VARIANTS}
    sys.stdout.write(table(costs, given.batch))


if __name__ == "__main__":
    main(sys.argv[1:])
