"""The sections of benchmarks/gpu.py: each yields rows, one a figure, as soon as it has it."""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.batches import Size, random_batch
from benchmarks.data import make_work
from benchmarks.evaluate import NOISE, SENTENCE, score, write_inception
from benchmarks.plain_step import PlainStep
from benchmarks.step import build_system, count_flops
from t2i_hpc.common.errors import UserError
from t2i_hpc.common.seeds import noise
from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.training_data import indexed_loader
from t2i_hpc.evaluation.detectors.inception import InceptionV3
from t2i_hpc.models.ssa_generator import SSAGenerator
from t2i_hpc.systems.encoders import scale_images
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.metrics_log import Arithmetic
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World

Row = dict[str, Any]
VARIANTS: dict[str, dict[str, Any]] = {
    "bf16+channels_last": {"precision": "bf16", "channels_last": True},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "fp32": {"precision": "fp32"},
}
COMPILED: dict[str, dict[str, Any]] = {
    "bf16+channels_last+compile": {
        "precision": "bf16",
        "channels_last": True,
        "compile": ["all"],
    },
}
_PLAIN_PRECISION = "tf32"  # torch's default for convolutions, which are nearly all of it


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    width: int = 64
    resolution: int = 256
    batches: tuple[int, ...] = (64, 24)
    damsm: bool = True
    warm_up: int = 3
    steps: int = 10
    step_seconds: float = 6.0  # of timed steps at most
    samples: int = 100
    jpeg: int = 304
    loaded: int = 6000
    scored: int = 4096
    scoring_batch: int = 128

    @classmethod
    def tiny(cls) -> Scale:
        """Return what a CPU does in seconds."""
        return cls(4, 64, (4,), False, 1, 1, 1.0, 8, 76, 32, 8, 4)

    def size(self, batch: int) -> Size:
        """Return the networks and the batch."""
        return Size(self.width, self.resolution, batch, self.damsm)


def steps(scale: Scale, device: torch.device) -> Iterator[Row]:
    """Training steps in eager mode: plain ones first, while torch's flags are its own."""
    for batch in scale.batches:
        yield from step_row("plain", scale, batch, partial(plain_step, scale, batch, device))
    yield {"what": "flops", "per_image": flops_per_image(scale, device)}
    # The largest batch of all variants first: what matters most is there if time runs out.
    for batch, variant in itertools.product(scale.batches, VARIANTS):
        build = partial(our_step, scale, batch, device, VARIANTS[variant])
        yield from step_row(variant, scale, batch, build)


def compiled(scale: Scale, device: torch.device) -> Iterator[Row]:
    """Training steps whose phases are compiled whole, penalties too."""
    for variant, settings in COMPILED.items():
        build = partial(our_step, scale, scale.batches[0], device, settings)
        yield from step_row(variant, scale, scale.batches[0], build)


@dataclass(frozen=True)
class Step:
    """A step that can be run, its precision, and what gives milliseconds by part, if anything."""

    run: Callable[[], object]
    precision: str
    device: torch.device
    parts: Callable[[], dict[str, float]] = dict


def plain_step(scale: Scale, batch: int, device: torch.device) -> Step:
    """Build the released order of operations at torch's own defaults."""
    system = build_system(scale.size(batch))
    system.modules.to(device)
    samples, latent = random_batch(scale.size(batch), system, device)
    plain, images = PlainStep(system), scale_images(samples.images)
    rest = samples.tokens, samples.lengths, samples.classes, latent
    return Step(lambda: plain.run(images, *rest), _PLAIN_PRECISION, device)


def our_step(scale: Scale, batch: int, device: torch.device, settings: dict[str, Any]) -> Step:
    """Build the project's step as training does."""
    system = build_system(scale.size(batch))
    system.modules.to(device)
    if device.type != "cuda":
        settings = settings | {"compile": []}  # a rehearsal, which compiles nothing
    config = EngineConfig(batch_size=batch, **settings)
    strategy = DDPStrategy(system, World(0, 1, 0, 1, device), config)
    samples, latent = random_batch(scale.size(batch), system, device)
    seen = itertools.count(0, batch)

    def run() -> None:
        train_step(strategy, samples, latent, next(seen))
        strategy.nonfinite.pop_first(strategy.step_number)  # as the loop does: a step later

    return Step(run, settings["precision"], device, strategy.clock.read)


def step_row(variant: str, scale: Scale, batch: int, build: Callable[[], Step]) -> Iterator[Row]:
    """Yield the figures of one step, or that memory was too small for it."""
    row: Row = {"what": "step", "variant": variant, "batch": batch, "images_per_second": None}
    try:
        yield row | timed(build(), scale, batch)
    except torch.OutOfMemoryError:
        yield row | {"note": "does not fit into the memory"}
    except UserError as error:  # a phase that differs from eager execution
        yield row | {"note": str(error)}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def timed(step: Step, scale: Scale, batch: int) -> Row:
    """Run a step some times: as many as fit into the time, after a warm-up."""
    on_gpu = step.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(step.device)
    for _ in range(scale.warm_up):
        step.run()
    synchronize(step.device)
    step.parts()
    start, count = time.perf_counter(), 0
    while count < scale.steps and time.perf_counter() - start < scale.step_seconds:
        step.run()
        count += 1
    synchronize(step.device)
    speed = batch * count / (time.perf_counter() - start)
    peak = Arithmetic.of(None, step.device, step.precision, 1).peak
    memory = torch.cuda.max_memory_allocated(step.device) / 2**30 if on_gpu else 0.0
    return {
        "images_per_second": speed,
        "peak": peak,
        "gib": round(memory, 1),
        "milliseconds": step.parts(),
    }


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_per_image(scale: Scale, device: torch.device) -> float:
    """Return the floating-point operations of one of our steps in float32, by its images."""
    size = scale.size(4)
    system = build_system(size)
    system.modules.to(device)
    strategy = DDPStrategy(system, World(0, 1, 0, 1, device), EngineConfig(batch_size=4))
    batch, latent = random_batch(size, system, device)
    return count_flops(lambda: train_step(strategy, batch, latent)) / 4


def loader(scale: Scale, device: torch.device) -> Iterator[Row]:
    """Images that arrive on the device, with as many workers as a rank would have cores."""
    from t2i_hpc.training.loop import on_device

    cores = len(os.sched_getaffinity(0))
    workers = max(1, min(8, cores - 1)) if device.type == "cuda" else 0
    batch = scale.batches[0]
    with TemporaryDirectory() as folder:
        given = argparse.Namespace(samples=scale.samples, size=scale.jpeg, batch=batch)
        work = make_work(Path(folder), given)
        config = DataConfig(path=work.config.path, workers=workers)
        stream = indexed_loader(config, work.split, work.resolution, 0, RankSlice(batch))
        latent = torch.randn(batch, NOISE)
        batches = on_device(((each, latent) for each in stream.batches(0)), device)
        for _ in range(2 * workers + 1):  # past their start and what they made ahead
            next(batches)
        start, count = time.perf_counter(), 0
        while count < scale.loaded:
            count += len(next(batches)[0].images)
        synchronize(device)
        speed = count / (time.perf_counter() - start)
        stream.close()
    yield {"what": "loader", "images_per_second": speed, "workers": workers, "cores": cores}


def scoring(scale: Scale, device: torch.device) -> Iterator[Row]:
    """Images that are generated and scored a second, as `evaluate` does both."""
    batch, count = scale.scoring_batch, scale.scored
    generator = SSAGenerator(
        scale.resolution, width=scale.width, noise_width=NOISE, sentence_width=SENTENCE
    )
    generator.eval().to(device)

    @torch.no_grad()
    def images_of(numbers: range) -> Tensor:
        latent = noise(1, "noise", numbers, NOISE).to(device)
        sentences = noise(1, "sentences", numbers, SENTENCE).to(device)
        images = generator(latent, sentences).images[-1]
        levels: Tensor = (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        return levels

    with TemporaryDirectory() as folder:
        weights = Path(folder) / "inception.pth"
        write_inception(weights)
        for precision in ("float32", "bfloat16"):
            detector = InceptionV3(weights, device, precision=precision)
            score(images_of, detector, range(2 * batch), batch)
            synchronize(device)
            start = time.perf_counter()
            score(images_of, detector, range(count), batch)
            synchronize(device)
            speed = count / (time.perf_counter() - start)
            variant = f"detector {precision}"
            yield {
                "what": "scoring",
                "variant": variant,
                "images_per_second": speed,
                "images": count,
            }


Section = Callable[[Scale, torch.device], Iterator[Row]]
SECTIONS: dict[str, Section] = {
    "steps": steps,
    "loader": loader,
    "scoring": scoring,
    "compile": compiled,
}
