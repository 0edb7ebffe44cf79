"""What KID, precision and recall of kept features cost, against the direct way, in one run.

    python -m benchmarks.features                   # 30,000 × 2,048: many minutes
    python -m benchmarks.features --images 4000

The direct way is kept here: float64 kernels of every pair for KID; all four distance matrices and
a selection in each row for precision and recall. Features are drawn: half of their variance is in
16 directions, four fifths in 128, as those of a network are. Times are those of the processor,
summed over threads, so another load on the machine moves them little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i_hpc.evaluation.kid import kernel_distance
from t2i_hpc.evaluation.neighbors import Neighborhoods
from t2i_hpc.evaluation.precision_recall import precision_and_recall
from t2i_hpc.runs.partial_statistics import Features

CPU = torch.device("cpu")
_HIDDEN, _NEIGHBOR, _AT_ONCE = 512, 3, 1024
_ROW = "{:<22}{:>10.1f} s{:>10.1f} s{:>10.3f}   {}\n"


def features(images: int, width: int, seed: int) -> Features:
    """Return features float32 (images, width) of a random network over random inputs."""
    shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    scale = torch.arange(1, _HIDDEN + 1) ** -0.6
    weights = 4 * torch.randn(_HIDDEN, width, generator=shared) / _HIDDEN**0.5
    offset = 0.3 * torch.randn(width, generator=shared)
    inputs = torch.randn(images, _HIDDEN, generator=own) * scale
    noise = 0.05 * torch.randn(images, width, generator=own)
    return torch.relu(inputs @ weights + offset + noise).numpy()


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


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of a call and its result."""
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


def main() -> None:
    """Measure and print one row a metric."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    generated = 1.05 * features(asked.images, asked.width, 1)
    real = features(asked.images, asked.width, 2)
    subsets, size = asked.subsets, asked.size
    pairs = {
        "KID": (
            lambda: direct_kernel_distance(generated, real, subsets, size, 1),
            lambda: kernel_distance(generated, real, subsets=subsets, size=size, seed=1),
        ),
        "precision and recall": (
            lambda: direct_precision_and_recall(generated, real),
            lambda: precision_and_recall(Neighborhoods.of(generated, real, _NEIGHBOR, CPU)),
        ),
    }
    sys.stdout.write(f"{'':<22}{'direct':>12}{'now':>12}{'ratio':>10}   values\n")
    sums = [0.0, 0.0]
    for name, ways in pairs.items():
        taken, found = zip(*(timed(way) for way in ways), strict=True)
        sums = [total + one for total, one in zip(sums, taken, strict=True)]
        values = " | ".join(", ".join(f"{v:.6f}" for v in one) for one in found)
        sys.stdout.write(_ROW.format(name, *taken, taken[1] / taken[0], values))
        sys.stdout.flush()
    sys.stdout.write(_ROW.format("both", *sums, sums[1] / sums[0], ""))


if __name__ == "__main__":
    main()
