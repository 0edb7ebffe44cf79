"""Cheap stand-ins: a detector whose bits depend on its batch, and images by number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from t2i_hpc.common.seeds import generator
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity

SIZE = 8


class FakeDetector:
    """Projects 8 px images to 6 features; like real kernels, it computes rows of unlike
    batches with unlike rounding, only much more visibly."""

    identity = DetectorIdentity("fake", "a fake", "FD (fake)", "fake", "none", 6, 5, "f" * 64)
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.images = 0
        width = self.identity.width
        values = generator(1, "fake detector", 0).standard_normal((3 * SIZE * SIZE, width))
        self._matrix = torch.from_numpy(values.astype(np.float32)) / 500

    def features(self, images: Tensor) -> Tensor:
        self.images += len(images)
        rounding = 1 + 1e-4 * len(images) + 1e-4 * torch.arange(len(images))[:, None]
        return (images.flatten(1).float() @ self._matrix) * rounding

    def logits(self, features: Tensor, images: Tensor) -> Tensor:
        return features[:, : self.identity.classes]


def fake_images(numbers: Sequence[int], seed: int = 0) -> Tensor:
    """Return images uint8 (B, 3, 8, 8), each from (seed, number) alone."""
    pictures = [
        generator(seed, "fake image", number).integers(0, 256 - 40 * seed, (3, SIZE, SIZE))
        for number in numbers
    ]
    return torch.from_numpy(np.stack(pictures).astype(np.uint8))
