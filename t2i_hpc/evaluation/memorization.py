"""Memorization: the share of generated images nearer to a training image than real ones are.

Each image's distance to the training set is the Euclidean distance of its features to those of the
nearest training image. Real images that were held out have such distances too, and some of them are
short, since photographs of a data set resemble each other. The threshold is the distance that
`share` of the held-out images do not exceed; the score is the share of generated images that do not
exceed it. Images like held-out ones thus score `share`; a generator that gives training images back
scores up to 1. The threshold travels with data and network: no constant has to be believed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from t2i_hpc.evaluation.neighbors import distances
from t2i_hpc.evaluation.screening import blocks
from t2i_hpc.runs.partial_statistics import Features

_CANDIDATES = 8  # nearest by float32 products, whose distances are computed
_COLUMNS = 1 << 14  # training images at once, so that a block of products takes 64 MB


@dataclass(frozen=True)
class Memorization:
    """Generated images and the training images nearest to them.

    Attributes:
        nearest: number of the nearest training image, int64 (N,); of equal ones the first.
        apart: distance to it, float64 (N,).
        threshold: distance that the chosen share of held-out images do not exceed.
    """

    nearest: npt.NDArray[np.int64]
    apart: npt.NDArray[np.float64]
    threshold: float

    @property
    def score(self) -> tuple[float, float]:
        """The share of memorized images, in [0, 1], and its standard error."""
        share = float((self.apart <= self.threshold).mean())
        return share, math.sqrt(share * (1 - share) / len(self.apart))

    def closest(self, count: int) -> list[int]:
        """Return the numbers of the images nearest to a training image, nearest first."""
        order = np.argsort(self.apart, kind="stable")
        return [int(number) for number in order[:count]]


def memorization(
    generated: Features,
    held_out: Features,
    training: Features,
    *,
    share: float,
    device: torch.device,
) -> Memorization:
    """Find the nearest training images of generated and of held-out ones.

    Args:
        generated: features by image number, float (N, D).
        held_out: of real images that were not trained on, float (M, D).
        training: of the training images, float (T, D).
        share: of the held-out images that the threshold lets through, in (0, 1).
        device: of the distances.
    """
    train = _on(training, device)
    center = train.mean(0, dtype=torch.float64).float()
    train -= center  # products of small differences are exact enough in float32
    sets = (_on(rows, device).sub_(center) for rows in (generated, held_out))
    (nearest, apart), (_, real) = (nearest_of(each, train) for each in sets)
    place = max(1, math.ceil(share * len(real)))
    threshold = float(np.sort(real)[place - 1])
    return Memorization(nearest, apart, threshold)


def nearest_of(
    points: Tensor, training: Tensor
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the nearest training point of each point, int64 (N,), and its distance, float64 (N,).

    Products in float32 name candidates, differences in float64 decide among them: a copy of a
    training image is at distance 0.
    """
    found = [_nearest(points, own, training) for own in blocks(len(points))]
    numbers = torch.cat([number for number, _ in found]).cpu().numpy()
    return numbers, torch.cat([apart for _, apart in found]).sqrt().cpu().numpy()


def _nearest(points: Tensor, own: slice, training: Tensor) -> tuple[Tensor, Tensor]:
    near = torch.cat(list(_candidates(points[own], training)), 1).sort(1).values
    itself = torch.arange(own.start, own.stop, device=near.device)
    apart = distances(points, itself[:, None], training, near)
    least = apart.min(dim=1, keepdim=True).values
    # Candidates ascend, so the first of equally near ones is the one with the lowest number.
    place = (apart == least).int().argmax(dim=1, keepdim=True)
    return near.gather(1, place)[:, 0], least[:, 0]


def _candidates(rows: Tensor, training: Tensor) -> Iterator[Tensor]:
    """Yield numbers of training rows, the nearest of each block of them, int64 (n, c)."""
    for start in range(0, len(training), _COLUMNS):
        block = training[start : start + _COLUMNS]
        apart = torch.addmm(block.square().sum(1), rows, block.T, alpha=-2)
        wanted = min(_CANDIDATES, len(block))
        yield apart.topk(wanted, largest=False).indices + start


def _on(rows: Features, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float32)).to(device)
