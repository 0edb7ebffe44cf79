"""Folder against folder, FID, IS and KID: this build, an earlier one, torch-fidelity, in turn.

    python -m benchmarks.evaluate_folders                          # 2,000 images a side
    python -m benchmarks.evaluate_folders --before /tmp/earlier    # a git worktree of another build
    python -m benchmarks.evaluate_folders --images 32 --repeats 1  # a try

Each row is a process of its own, its start included: wall-clock and CPU seconds, images a second of
both sides together, and the three values. torch-fidelity runs at its defaults, and once more with
glibc told to keep freed memory, which it otherwise gives back and asks for in every layer. Rows are
repeated in turn and the quickest counts. Below stands how busy the detector was with photographs
that are decoded and scaled by Lanczos meanwhile, and which share of the machine's rate of float32
products it reaches, both by processor time. Inception's weights are random.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from benchmarks.evaluate import write_inception
from t2i_hpc.evaluation.detectors.inception import InceptionV3
from t2i_hpc.evaluation.fid import Moments
from t2i_hpc.evaluation.image_sources import ImageFolder, RealImages, ResizeRule
from t2i_hpc.evaluation.pipeline import extract_features

_ROOT = Path(__file__).parent.parent
_SIDE, _PHOTOGRAPH, _SEED = 256, (480, 640), 1
_KEEP = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
_ROW = "{:<30}{:>8}{:>8}{:>10}   {}\n"
_FIDELITY = """
import json, sys, torch, torch_fidelity
first, second, weights, subset, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
found = torch_fidelity.calculate_metrics(
    input1=first, input2=second, fid=True, isc=True, kid=True, kid_subset_size=int(subset),
    feature_extractor_weights_path=weights, rng_seed=1, cuda=False, verbose=False, cache=False)
print(json.dumps(found))
"""
_NAMES = {
    "frechet_inception_distance": ("FD (Inception-v3, other weights)", "value"),
    "inception_score_mean": ("Inception score (Inception-v3, other weights)", "value"),
    "kernel_inception_distance_mean": ("KID (Inception-v3, other weights)", "value"),
}


@dataclass(frozen=True)
class Task:
    """Two folders of PNG files, Inception's weights, and how they are compared."""

    first: Path
    second: Path
    weights: Path
    images: int
    threads: int

    @property
    def subset(self) -> int:
        """Images of a subset of KID."""
        return min(1000, self.images)


@dataclass(frozen=True)
class Run:
    """What a process took, and what it found by torch-fidelity's names."""

    wall: float
    cpu: float
    values: dict[str, float]


def write_images(folder: Path, count: int, shape: tuple[int, int], suffix: str, seed: int) -> None:
    """Write smooth random pictures, which files compress as they do photographs."""
    folder.mkdir()
    draws = np.random.default_rng(seed)
    for number in range(count):
        coarse = draws.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC)
        pixels = np.asarray(picture).astype(np.int16) + draws.integers(-6, 7, (*shape, 3))
        levels = (pixels * (1 - 0.2 * seed)).clip(0, 255).astype(np.uint8)  # so that sets differ
        Image.fromarray(levels).save(folder / f"{number:05d}.{suffix}")


def timed(command: list[str], environment: Mapping[str, str], folder: Path) -> tuple[Run, str]:
    """Run a process; return what it took, and its output."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, check=True, capture_output=True
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall, cpu, {}), done.stdout.decode()


def by_fidelity(task: Task, environment: Mapping[str, str]) -> Run:
    """Score with torch-fidelity at its defaults."""
    words = [task.first, task.second, task.weights, task.subset, task.threads]
    command = [sys.executable, "-c", _FIDELITY, *map(str, words)]
    run, output = timed(command, environment, _ROOT)
    return Run(run.wall, run.cpu, json.loads(output.splitlines()[-1]))


def by_build(task: Task, build: Path) -> Run:
    """Score with the command of a build."""
    with TemporaryDirectory() as scores:
        overrides = [
            f"images={task.first}",
            f"reference={task.second}",
            f"output={scores}",
            f"threads={task.threads}",
            "device=cpu",
            "json=true",
            "evaluation=clean",
            "evaluation.detector_resize=own",
            "evaluation.metrics=[fid,is,kid]",
            f"evaluation.detector_weights={task.weights}",
            f"evaluation.images={task.images}",
            f"evaluation.seed={_SEED}",
            f"evaluation.cache={scores}/cache",
            f"evaluation.kid_subset_size={task.subset}",
        ]
        command = [sys.executable, "-m", "t2i_hpc.evaluate", *overrides]
        run, output = timed(command, {"PYTHONPATH": str(build)}, build)
    rows = {row["metric"]: row for row in map(json.loads, output.splitlines())}
    return Run(run.wall, run.cpu, {k: rows[name][key] for k, (name, key) in _NAMES.items()})


def waiting_line(weights: Path, photographs: Path, threads: int) -> str:
    """Say how busy the detector is on the real side: decoding, Lanczos, Inception."""
    torch.set_num_threads(threads)
    folder, rule = ImageFolder(photographs), ResizeRule(filter="lanczos")
    real = RealImages(folder.count, "", "", "files", folder.image)
    detector = InceptionV3(weights, torch.device("cpu"))
    moments = Moments.empty(detector.identity.width)

    def images_of(numbers: range) -> torch.Tensor:
        return real.resized([number % folder.count for number in numbers], rule, _SIDE)

    waited = extract_features(images_of, detector, range(folder.count), 32, moments.add)
    height, width = _PHOTOGRAPH
    return (
        f"real side, JPEG of {width} x {height} px, Lanczos to {_SIDE} px: detector busy "
        f"{1 - waited.share:.1%} of {waited.total:.0f} s\n"
    )


def rate_line(weights: Path, threads: int) -> str:
    """Say how near the detector is to the quickest float32 product of the machine."""
    torch.set_num_threads(threads)
    side, few = 2048, 16 * threads
    square = torch.randn(side, side)
    product = 2 * side**3 / processor_seconds(lambda: square @ square) / 1e9
    network = FeatureExtractorInceptionV3(
        "fidelity", ["2048"], feature_extractor_weights_path=str(weights)
    )
    images = torch.randint(0, 256, (few, 3, _SIDE, _SIDE)).to(torch.uint8)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(images[:1])
    detector = InceptionV3(weights, torch.device("cpu"))
    taken = processor_seconds(lambda: detector.features(images))
    reached = few * counter.get_total_flops() / taken / 1e9
    return (
        f"detector: {reached:.0f} of {product:.0f} GFLOP/s of a float32 product on a core, "
        f"{reached / product:.0%} of the machine's GEMM rate\n"
    )


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the least processor time, over all threads, of three calls after a first one."""
    work()
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--before", type=Path, help="folder of another build")
    given = parser.parse_args()
    with TemporaryDirectory() as place:
        here = Path(place)
        write_inception(here / "inception.pth")
        for seed, name in enumerate(("first", "second")):
            write_images(here / name, given.images, (_SIDE, _SIDE), "png", seed)
        write_images(here / "photographs", given.images, _PHOTOGRAPH, "jpg", 2)
        task = Task(
            here / "first", here / "second", here / "inception.pth", given.images, given.threads
        )
        ways: dict[str, Callable[[], Run]] = {
            "torch-fidelity": lambda: by_fidelity(task, {}),
            "torch-fidelity, memory kept": lambda: by_fidelity(task, _KEEP),
        }
        if given.before:
            ways["before"] = lambda: by_build(task, given.before)
        ways["now"] = lambda: by_build(task, _ROOT)
        best: dict[str, Run] = {}
        for _ in range(given.repeats):
            for name, way in ways.items():
                run = way()
                best[name] = min(best.get(name, run), run, key=lambda each: each.wall)
        sys.stdout.write(_ROW.format("", "wall s", "CPU s", "images/s", "FD, IS, KID"))
        for name, run in best.items():
            taken = [run.wall, run.cpu, 2 * given.images / run.wall]
            values = ", ".join(f"{run.values[each]:.7g}" for each in _NAMES)
            sys.stdout.write(_ROW.format(name, *(f"{each:.1f}" for each in taken), values))
        sys.stdout.write(waiting_line(task.weights, here / "photographs", given.threads))
        sys.stdout.write(rate_line(task.weights, given.threads))


if __name__ == "__main__":
    main()
