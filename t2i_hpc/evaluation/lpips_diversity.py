"""LPIPS diversity: the mean perceptual distance of images of one caption.

LPIPS (Zhang et al., CVPR 2018, version 0.1, AlexNet) is a distance of two images: features of five
layers, each of length 1 over its channels, are subtracted, squared, weighted by channel and
averaged over places. With the weights' roots multiplied in, an image is one long vector x, and the
distance of two images is |x − x′|². So the mean over all pairs of K images needs no pair:

    mean = 2 / (K − 1) · Σ |x − x̄|²

The score is the mean over captions. A batch holds whole captions, so sums over captions add up over
evaluation shards. Weights come from a local folder: torchvision's AlexNet, the authors' alex.pth.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.evaluation.collectors import FeatureBatch
from t2i_hpc.evaluation.detectors.detector import exact_inference
from t2i_hpc.runs.partial_statistics import Arrays

VectorsOf = Callable[[Tensor], Tensor]
_KEY = "evaluation.lpips"
_BACKBONE, _WEIGHTS = "alexnet-owt-7be5be79.pth", "alex.pth"
_ADVICE = (
    f"name a folder with {_BACKBONE} (torchvision's AlexNet, download.pytorch.org/models) and "
    f"{_WEIGHTS} (lpips/weights/v0.1 of the package lpips)"
)
_TAPS = (1, 4, 7, 9, 11)  # ReLUs of AlexNet whose outputs are compared
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS, for pixels in [-1, 1]
COUNT, TOTAL, SQUARES = "lpips_count", "lpips_total", "lpips_squares"
NAMES = (COUNT, TOTAL, SQUARES)


def lpips_identity(given: str) -> str:
    """Return what a protocol says of LPIPS: hashes of its two files.

    Args:
        given: the folder that holds them.

    Raises:
        EvaluationError: no folder is named, or a file is missing.
    """
    backbone, weights = _files(given)
    return f"AlexNet {sha256_of_file(backbone)}, weights {sha256_of_file(weights)}, version 0.1"


class LPIPS:
    """Turns images into vectors whose squared distance is LPIPS; arguments as above.

    Raises:
        EvaluationError: the files are missing, damaged or another network's.
    """

    def __init__(self, given: str, device: torch.device) -> None:
        from torchvision.models import alexnet

        backbone, weights = _files(given)
        network = alexnet(weights=None).features
        features = _read(backbone)
        prefix = "features."
        own = {k.removeprefix(prefix): v for k, v in features.items() if k.startswith(prefix)}
        linear = [_read(weights).get(f"lin{n}.model.1.weight") for n in range(len(_TAPS))]
        widths = [64, 192, 384, 256, 256]
        shapes = [None if one is None else one.numel() for one in linear]
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise _damaged(backbone) from error
        if shapes != widths or any(bool((one < 0).any()) for one in linear if one is not None):
            raise _damaged(weights)
        self._device = device
        self._layers: nn.Sequential = network.eval().requires_grad_(False).to(device)
        self._roots = [one.float().flatten().sqrt().to(device) for one in linear if one is not None]
        self._shift, self._scale = (
            torch.tensor(values, device=device)[:, None, None] for values in (_SHIFT, _SCALE)
        )

    def vectors(self, images: Tensor) -> Tensor:
        """Return float32 (n, L) for uint8 images (n, 3, R, R)."""
        with exact_inference():
            values = images.to(self._device).float() / 127.5 - 1
            maps = (values - self._shift) / self._scale
            parts = []
            for number, layer in enumerate(self._layers):
                if number > _TAPS[-1]:
                    break
                maps = layer(maps)
                if number in _TAPS:
                    parts.append(self._weighted(maps, _TAPS.index(number)))
        return torch.cat(parts, 1)

    def _weighted(self, maps: Tensor, layer: int) -> Tensor:
        """Return a layer's part of the vectors: (n, C·h·w) of maps (n, C, h, w)."""
        # As the authors': the small number is added to the length, not under its root.
        units = maps / (maps.norm(dim=1, keepdim=True) + 1e-10)
        places = math.sqrt(maps.shape[2] * maps.shape[3])
        weighted: Tensor = units * (self._roots[layer][:, None, None] / places)
        return weighted.flatten(1)


class CaptionDistances:
    """Number, sum and sum of squares of captions' mean distances.

    Args:
        vectors_of: turns images uint8 (n, 3, R, R) into vectors (n, L).
        images_per_caption: K; a batch holds whole captions.
    """

    def __init__(self, vectors_of: VectorsOf, images_per_caption: int) -> None:
        self._vectors_of, self._each = vectors_of, images_per_caption
        self._count = np.zeros((), dtype=np.int64)
        self._total, self._squares = np.zeros(()), np.zeros(())

    def add(self, batch: FeatureBatch) -> None:
        """Add the captions of a batch; one that lacks images is left out."""
        whole = len(batch.images) // self._each * self._each
        for images in batch.images[:whole].split(self._each):
            distance = mean_distance(self._vectors_of(images))
            self._count += 1
            self._total += distance
            self._squares += distance**2

    def arrays(self) -> Arrays:
        """Return the sums, () each."""
        return {COUNT: self._count, TOTAL: self._total, SQUARES: self._squares}


def mean_distance(vectors: Tensor) -> float:
    """Return the mean squared distance of all pairs of vectors (K, L)."""
    # Around their mean: few digits are lost where images are nearly equal.
    centered = (vectors - vectors.mean(0)).double()
    return 2 * float(centered.square().sum()) / (len(vectors) - 1)


def lpips_diversity(sums: Arrays) -> tuple[float, float | None]:
    """Return the mean over captions and its standard error, None of a single caption."""
    count = int(sums[COUNT])
    mean = float(sums[TOTAL]) / count
    if count < 2:
        return mean, None
    variance = (float(sums[SQUARES]) - count * mean**2) / (count - 1)
    return mean, math.sqrt(max(variance, 0.0) / count)


def check_batches(batch_size: int, images_per_caption: int) -> None:
    """Refuse batches that cut captions apart.

    Raises:
        EvaluationError: says what to set.
    """
    if batch_size % images_per_caption:
        whole = max(1, batch_size // images_per_caption) * images_per_caption
        raise EvaluationError(
            f"evaluation.batch_size={batch_size} cuts captions of "
            f"evaluation.images_per_caption={images_per_caption} images apart, and lpips compares "
            f"within a batch: take {whole}"
        )


def _files(given: str) -> tuple[Path, Path]:
    if not given:
        raise EvaluationError(f"{_KEY} is empty: {_ADVICE}")
    for name in (_BACKBONE, _WEIGHTS):
        if not (Path(given) / name).is_file():
            raise EvaluationError(f"{_KEY}={given} has no {name}: {_ADVICE}")
    return Path(given) / _BACKBONE, Path(given) / _WEIGHTS


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors; no other pickle is opened."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> EvaluationError:
    return EvaluationError(f"{path} is damaged or no file of LPIPS with AlexNet: {_ADVICE}")
