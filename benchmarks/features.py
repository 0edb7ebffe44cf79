"""What a merge costs that scores kept features by FID, KID, precision and recall.

    python -m benchmarks.features                         # 30,000 × 2,048: many minutes
    python -m benchmarks.features --images 4000
    python -m benchmarks.features --before /tmp/earlier   # a git worktree of another build too

Each row is a process of its own, its start included: it reads the evaluation shards of both sets
from files, merges them, and scores them. The direct way is kept here: the square root of a product
of covariances for FID; float64 kernels of every pair for KID; all four distance matrices and a
selection in each row for precision and recall. Features are drawn: half of their variance is in 16
directions, four fifths in 128, as those of a network are. Seconds are those of the processor, of
all threads, so another load on the machine moves them little; "wall" alone is of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i_hpc.evaluation.collectors import Statistic
from t2i_hpc.evaluation.compute import ImageSet, MergedStatistics, Sharding, merged
from t2i_hpc.evaluation.detectors.detector import exact_inference
from t2i_hpc.evaluation.fid import NAMES, Moments, frechet_distance
from t2i_hpc.evaluation.kid import kernel_distance
from t2i_hpc.evaluation.neighbors import Neighborhoods
from t2i_hpc.evaluation.precision_recall import precision_and_recall
from t2i_hpc.runs.partial_statistics import (
    Features,
    Header,
    PartialStatistics,
    Target,
    features_path,
    write_features,
)

CPU = torch.device("cpu")
_ROOT = Path(__file__).parent.parent
_DTYPE, _SETS = "float32", ("generated", "real")
_HIDDEN, _NEIGHBOR, _AT_ONCE, _SHARDS, _BATCH = 512, 3, 1024, 4, 32
_PARTS = ("load", "FID", "KID", "prec., rec.")
_ROW = "{:<8}" + "{:>9}" * 4 + "{:>12}" * len(_PARTS) + "   {}\n"


def features(images: int, width: int, seed: int) -> Features:
    """Return features float32 (images, width) of a random network over random inputs."""
    shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    scale = torch.arange(1, _HIDDEN + 1) ** -0.6
    weights = 4 * torch.randn(_HIDDEN, width, generator=shared) / _HIDDEN**0.5
    offset = 0.3 * torch.randn(width, generator=shared)
    inputs = torch.randn(images, _HIDDEN, generator=own) * scale
    noise = 0.05 * torch.randn(images, width, generator=own)
    return torch.relu(inputs @ weights + offset + noise).numpy()


def image_set(folder: Path, name: str, images: int, width: int) -> ImageSet:
    """Return one of the two sets, whose shards are in a folder."""

    def no_images(numbers: range) -> Tensor:
        raise ValueError(f"images {numbers} are not needed")

    target = Target(name, "benchmark", "", images, _BATCH)
    moments = Statistic(NAMES, lambda: Moments.empty(width))
    return ImageSet(target, folder / name, [moments], _DTYPE, no_images)


def write_shards(folder: Path, images: int, width: int) -> None:
    """Write the shards of both sets, as processes of an evaluation do."""
    for seed, name in enumerate(_SETS, start=1):
        kept = image_set(folder, name, images, width)
        rows = features(images, width, seed) * np.float32(1.05 if name == "generated" else 1)
        kept.folder.mkdir()
        for shard in range(_SHARDS):
            numbers = Sharding(_SHARDS, _BATCH).range_of(kept.target, shard)
            own = rows[numbers.start : numbers.stop]
            moments, path = Moments.empty(width), kept.path_of(shard, _SHARDS)
            moments.add_rows(torch.from_numpy(own))
            digest = write_features(features_path(path, _DTYPE), [own], len(own), width, _DTYPE)
            header = Header(
                kept.target, numbers.start, numbers.stop, shard, _SHARDS, {_DTYPE: digest}
            )
            PartialStatistics(header, dict(moments.arrays())).save(path)


def direct_load(folder: Path, name: str, images: int, width: int) -> MergedStatistics:
    """Sums and features of all shards, in memory."""
    kept, sums, parts = image_set(folder, name, images, width), dict[str, Any](), []
    for shard in range(_SHARDS):
        path = kept.path_of(shard, _SHARDS)
        for key, value in PartialStatistics.load(path).sums.items():
            sums[key] = sums.get(key, 0) + value
        parts.append(np.load(features_path(path, _DTYPE)))
    return MergedStatistics(sums, np.concatenate(parts))


def direct_frechet_distance(generated: MergedStatistics, real: MergedStatistics) -> float:
    """FID by the square root of a product."""
    one, other = (Moments.from_arrays(each.sums).gaussian() for each in (generated, real))
    from scipy.linalg import sqrtm  # of which the builds' processes need nothing

    root = sqrtm(one.covariance.numpy() @ other.covariance.numpy())
    traces = one.covariance.trace() + other.covariance.trace() - 2 * np.trace(root).real
    return float((one.mean - other.mean).square().sum() + traces)


def direct_kernel_distance(
    generated: Features, real: Features, subsets: int, size: int, seed: int
) -> tuple[float, float]:
    """KID with every kernel value in float64."""

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second.T / first.shape[1] + 1) ** 3

    draws, values = np.random.RandomState(seed), []
    for _ in range(subsets):
        chosen = [rows[draws.choice(len(rows), size, replace=False)] for rows in (generated, real)]
        x, y = (torch.from_numpy(rows).double() for rows in chosen)
        within = sum(k.sum() - k.diagonal().sum() for k in (kernel(x, x), kernel(y, y)))
        values.append(float(within / (size * (size - 1)) - 2 * kernel(x, y).sum() / size**2))
    return float(np.mean(values)), float(np.std(values))


def direct_precision_and_recall(generated: Features, real: Features) -> tuple[float, float]:
    """Precision and recall from whole distance matrices."""
    both = [torch.from_numpy(rows) for rows in (generated, real)]
    radii = [
        torch.cat(
            [
                torch.cdist(part, rows).kthvalue(_NEIGHBOR + 1).values
                for part in rows.split(_AT_ONCE)
            ]
        )
        for rows in both
    ]

    def share(points: Tensor, centers: Tensor, reach: Tensor) -> float:
        parts = [(torch.cdist(part, centers) <= reach).any(1) for part in points.split(_AT_ONCE)]
        return float(torch.cat(parts).double().mean())

    return share(both[0], both[1], radii[1]), share(both[1], both[0], radii[0])


def score(given: argparse.Namespace) -> dict[str, Any]:
    """Load, merge and score in this process; return values, seconds by part, and peak memory."""
    folder, size, direct = given.folder, (given.images, given.width), given.way == "direct"
    kept = [image_set(folder, name, *size) for name in _SETS]
    sets: list[MergedStatistics] = []
    subsets = {"subsets": given.subsets, "size": min(given.size, given.images), "seed": 1}

    def load() -> tuple[float, ...]:
        if direct:
            sets.extend(direct_load(folder, name, *size) for name in _SETS)
        else:
            sets.extend(merged(each, Sharding(_SHARDS, _BATCH)) for each in kept)
        return ()

    def frechet() -> tuple[float, ...]:
        if direct:
            return (direct_frechet_distance(*sets),)
        return (frechet_distance(*(Moments.from_arrays(each.sums) for each in sets)),)

    def kernel() -> tuple[float, ...]:
        return (direct_kernel_distance if direct else kernel_distance)(*rows(), **subsets)

    def neighbors() -> tuple[float, ...]:
        if direct:
            return direct_precision_and_recall(*rows())
        return precision_and_recall(Neighborhoods.of(*rows(), _NEIGHBOR, CPU))

    def rows() -> tuple[Features, Features]:
        first, second = (each.features for each in sets)
        assert first is not None
        assert second is not None
        return first, second

    values: list[float] = []
    taken: dict[str, float] = {}
    with exact_inference():
        for name, part in zip(_PARTS, (load, frechet, kernel, neighbors), strict=True):
            began = time.process_time()
            values.extend(part())
            taken[name] = time.process_time() - began
    return {"values": values, "parts": taken, "CPU": time.process_time(), "peak": peak_memory()}


def peak_memory() -> float:
    """Return the largest resident set of this program, in GB; not of what started it."""
    told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(told[1]) * 1024 / 1e9 if told else float("nan")


def run(arguments: list[str], folder: Path, way: str, build: Path) -> tuple[float, dict[str, Any]]:
    """Run a process of a build; return its wall-clock seconds and what it found."""
    command = [sys.executable, __file__, *arguments, "--way", way, "--folder", str(folder)]
    began = time.perf_counter()
    path = {**os.environ, "PYTHONPATH": str(build)}
    done = subprocess.run(command, cwd=build, env=path, check=True, stdout=subprocess.PIPE)
    wall = time.perf_counter() - began
    for whole in folder.glob("*/shard-00000-of-00001.*"):
        whole.unlink()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return wall, found


def row(name: str, wall: float, found: Mapping[str, Any], whole: float | None) -> str:
    """Return a line of the table."""
    ratio = "" if whole is None else f"{found['CPU'] / whole:.3f}"
    numbers = [f"{wall:.1f}", f"{found['CPU']:.1f}", ratio, f"{found['peak']:.2f}"]
    parts = [f"{found['parts'][each]:.1f}" for each in _PARTS]
    return _ROW.format(name, *numbers, *parts, ", ".join(f"{v:.6f}" for v in found["values"]))


def main() -> None:
    """Measure and print one row a way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--before", type=Path, help="folder of another build")
    parser.add_argument("--without-direct", action="store_true")
    parser.add_argument("--way", choices=("direct", "build"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.way:
        sys.stdout.write(json.dumps(score(given)))
        return
    ways: dict[str, tuple[str, Path]] = (
        {} if given.without_direct else {"direct": ("direct", _ROOT)}
    )
    if given.before:
        ways["before"] = ("build", given.before)
    ways["now"] = ("build", _ROOT)
    with TemporaryDirectory() as place:
        write_shards(Path(place), given.images, given.width)
        sys.stdout.write(_ROW.format("", "wall s", "CPU s", "ratio", "peak GB", *_PARTS, "values"))
        whole = None
        for name, way in ways.items():
            wall, found = run(sys.argv[1:], Path(place), *way)
            whole = found["CPU"] if name == "direct" else whole
            sys.stdout.write(row(name, wall, found, whole))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
