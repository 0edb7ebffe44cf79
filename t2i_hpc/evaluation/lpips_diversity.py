"""LPIPS diversity: the mean perceptual distance of images of one caption.

LPIPS (Zhang et al., CVPR 2018, version 0.1) is a distance of two images: features of five layers
of AlexNet or VGG-16, each of length 1 over its channels, are subtracted, squared, weighted by
channel and averaged over places. With the weights' roots multiplied in, an image is one long vector
x, and the distance of two images is |x − x′|². So the mean over all pairs of K images needs no
pair:

    mean = 2 / (K − 1) · Σ |x − x̄|²

The score is the mean over captions. A batch holds whole captions, so sums over captions add up over
evaluation shards. Weights come from a local folder, which decides the network: torchvision's, and
what the authors trained on top of it.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
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
_FOLDERS = "download.pytorch.org/models) and {} (lpips/weights/v0.1 of the package lpips)"


@dataclass(frozen=True)
class _Network:
    """A network of LPIPS.

    Attributes:
        name: for people.
        builder: its name in torchvision.
        backbone: file of torchvision's weights.
        weights: file of the channels' weights.
        taps: layers whose outputs are compared, ReLUs.
        widths: their channels.
    """

    name: str
    builder: str
    backbone: str
    weights: str
    taps: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def advice(self) -> str:
        """Which files it is in, and where they are found."""
        return f"{self.backbone} (torchvision's {self.name}, " + _FOLDERS.format(self.weights)


_ALEXNET = _Network(
    "AlexNet",
    "alexnet",
    "alexnet-owt-7be5be79.pth",
    "alex.pth",
    (1, 4, 7, 9, 11),
    (64, 192, 384, 256, 256),
)
_VGG16 = _Network(
    "VGG-16",
    "vgg16",
    "vgg16-397923af.pth",
    "vgg.pth",
    (3, 8, 15, 22, 29),
    (64, 128, 256, 512, 512),
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS, for pixels in [-1, 1]
COUNT, TOTAL, SQUARES = "lpips_count", "lpips_total", "lpips_squares"
NAMES = (COUNT, TOTAL, SQUARES)
_USUAL = "LPIPS diversity"


def lpips_identity(given: str) -> str:
    """Return what a protocol says of LPIPS: hashes of its two files.

    Args:
        given: the folder that holds them.

    Raises:
        EvaluationError: no folder is named, or a file is missing.
    """
    network, backbone, weights = _files(given)
    return (
        f"{network.name} {sha256_of_file(backbone)}, weights {sha256_of_file(weights)}, version 0.1"
    )


def metric_name(identity: str) -> str:
    """Return what the score is called, by :func:`lpips_identity`; AlexNet's is the usual one."""
    return f"LPIPS diversity ({_VGG16.name})" if identity.startswith(_VGG16.name) else _USUAL


class LPIPS:
    """Turns images into vectors whose squared distance is LPIPS; arguments as above.

    Raises:
        EvaluationError: the files are missing, damaged or another network's.
    """

    def __init__(self, given: str, device: torch.device) -> None:
        from torchvision import models

        network, backbone, weights = _files(given)
        layers = getattr(models, network.builder)(weights=None).features[: network.taps[-1] + 1]
        features, linear = _read(network, backbone), _read(network, weights)
        own = {f"features.{key}": key for key in layers.state_dict()}
        heads = [linear.get(f"lin{n}.model.1.weight") for n in range(len(network.taps))]
        roots = [one.float().flatten().sqrt().to(device) for one in heads if one is not None]
        try:
            layers.load_state_dict({own[k]: v for k, v in features.items() if k in own})
        except RuntimeError as error:
            raise _damaged(network, backbone) from error
        shapes = tuple(map(len, roots))
        if shapes != network.widths or any(bool(one.isnan().any()) for one in roots):
            raise _damaged(network, weights)
        self._taps = network.taps
        self._device = device
        self._layers: nn.Sequential = layers.eval().requires_grad_(False).to(device)
        self._roots = roots
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
                maps = layer(maps)
                if number in self._taps:
                    parts.append(self._weighted(maps, self._taps.index(number)))
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


def _files(given: str) -> tuple[_Network, Path, Path]:
    """Return the network whose files a folder holds, and the files."""
    both = f"{_ALEXNET.advice}, or {_VGG16.backbone} and {_VGG16.weights} from the same places"
    if not given:
        raise EvaluationError(f"{_KEY} is empty: name a folder with {both}")
    folder = Path(given)
    there = [one for one in (_ALEXNET, _VGG16) if (folder / one.backbone).is_file()]
    if len(there) > 1:
        raise EvaluationError(
            f"{_KEY}={given} has {there[0].backbone} and {there[1].backbone}, and one decides the "
            "network: keep each in a folder of its own"
        )
    if not there:
        raise EvaluationError(
            f"{_KEY}={given} has neither {_ALEXNET.backbone} nor {_VGG16.backbone}: name a folder "
            f"with {both}"
        )
    (network,) = there
    if not (folder / network.weights).is_file():
        raise EvaluationError(
            f"{_KEY}={given} has no {network.weights}: name a folder with {network.advice}"
        )
    return network, folder / network.backbone, folder / network.weights


def _read(network: _Network, path: Path) -> dict[str, Tensor]:
    """Read a file of tensors; no other pickle is opened."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(network, path) from error
    if not isinstance(content, dict):
        raise _damaged(network, path)
    return content


def _damaged(network: _Network, path: Path) -> EvaluationError:
    return EvaluationError(
        f"{path} is damaged or no file of LPIPS with {network.name}: name a folder with "
        f"{network.advice}"
    )
