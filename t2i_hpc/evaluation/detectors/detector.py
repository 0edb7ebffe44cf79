"""What all detectors share: fixed networks known by the hash of their weights, one arithmetic.

The arithmetic is float32, with the same kernels in every run. PyTorch lets cuDNN convolve in
TF32 (10 bits of mantissa) and choose kernels by timing, and matrix products may be set to TF32
for a whole process; each would make a score depend on the machine. bfloat16 is offered by name
alone: it is another protocol. So is the way in which 8-bit images become a network's input size:
Parmar et al. (CVPR 2022) show that libraries' resizing moves FID by several points.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.detectors.cpu_kernels import SideBySide, chunks_of
from t2i_hpc.sampling.arithmetic import exact_kernels

# On a CPU the features of so few 299 px images stay in its caches from layer to layer. On one
# thread PyTorch sends 1 × 1 convolutions of fewer than 16 images to a slow kernel.
_CPU_BATCH, _SINGLE_THREAD_BATCH = 8, 16


@dataclass(frozen=True)
class DetectorIdentity:
    """What is known of a detector without building its network.

    Attributes:
        name: the name in the configuration.
        label: one line for people: which network, which weights, what the score is not.
        metric_name: what the Fréchet distance over its features is called.
        family: what the other metrics add to their name, e.g. "" for FID's network as it is.
        preprocessing: how images reach the network, and its arithmetic; part of the protocol.
        width: number of features D.
        classes: number of classes C of its logits, 0 where it serves no Inception score.
        sha256: of the weights file; part of the protocol.
        network: what precision and recall add, which the literature has of VGG-16.
        notes: by kind of metric, what the label adds for its scores alone.
    """

    name: str
    label: str
    metric_name: str
    family: str
    preprocessing: str
    width: int
    classes: int
    sha256: str
    network: str = ""
    notes: Mapping[str, str] = field(default_factory=dict, hash=False)

    def label_of(self, kind: str) -> str:
        """Return the line for people beside a score of a kind of metric."""
        return "; ".join(filter(None, (self.label, self.notes.get(kind, ""))))


class Detector(Protocol):
    """A network whose features are compared."""

    identity: DetectorIdentity
    device: torch.device

    def features(self, images: Tensor) -> Tensor:
        """Return float32 (B, D) for uint8 images (B, 3, H, W), on the detector's device."""

    def logits(self, features: Tensor, images: Tensor) -> Tensor:
        """Return float32 (B, C) for features (B, D) of uint8 images (B, 3, H, W)."""


class NetworkDetector(ABC):
    """A detector with the arithmetic of all detectors.

    Args:
        identity: what is known of it.
        device: of its network.
        precision: of its convolutions, float32 or bfloat16.
    """

    @classmethod
    @abstractmethod
    def identify(cls, settings: EvaluationConfig) -> DetectorIdentity:
        """Return what is known of the configured detector without building its network.

        Raises:
            EvaluationError: its weights are missing or damaged.
        """

    @classmethod
    @abstractmethod
    def build(cls, settings: EvaluationConfig, device: torch.device) -> NetworkDetector:
        """Build the configured detector on `device`; errors as of :meth:`identify`."""

    def __init__(self, identity: DetectorIdentity, device: torch.device, precision: str) -> None:
        self.identity, self.device = identity, device
        self._precision = precision
        self._side_by_side = SideBySide(self._autocast)

    def features(self, images: Tensor) -> Tensor:
        """Return float32 (B, D) for uint8 images (B, 3, H, W) of any size."""
        with exact_inference():
            threads = torch.get_num_threads()
            if self.device.type == "cpu" and chunks_of(len(images), threads) > 1:
                return self._side_by_side(images, threads)
            return torch.cat([*map(self._autocast, images.split(self._at_once(len(images))))])

    def _autocast(self, images: Tensor) -> Tensor:
        """Extract a batch of any device; called by several threads, and autocast is of one."""
        with autocast(self._precision, self.device):
            return self._extract(to_device(images, self.device))

    def _at_once(self, images: int) -> int:
        """Return how many images go through the network together."""
        if self.device.type != "cpu":
            return max(1, images)
        return _CPU_BATCH if torch.get_num_threads() > 1 else _SINGLE_THREAD_BATCH

    def logits(self, features: Tensor, images: Tensor) -> Tensor:
        """Return float32 (B, 0): Inception scores are of a network that says otherwise."""
        return features[:, :0]

    @abstractmethod
    def _extract(self, images: Tensor) -> Tensor:
        """Return float32 (B, D) for a batch of uint8 images on the detector's device."""


@contextlib.contextmanager
def exact_inference() -> Iterator[None]:
    """Run the block without gradients, without TF32 and with deterministic cuDNN kernels."""
    with torch.inference_mode(), exact_kernels():
        yield


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device; a copy from the host to a GPU waits for nothing."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Multiply the batch norms ``bn`` of a network into the convolutions ``conv`` before them.

    The folding is done in float64; the network computes the same function with one pass over
    its activations less, in channels-last memory as the convolutions like it.
    """
    network.eval().requires_grad_(False)
    for block in network.modules():
        convolution, norm = getattr(block, "conv", None), getattr(block, "bn", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block.conv = fuse_conv_bn_eval(convolution.double(), norm.double()).float()
            block.bn = nn.Identity()
    return network.to(memory_format=torch.channels_last)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return a context in which convolutions run in `precision`, float32 or bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def as_tensorflow_1(images: Tensor, size: int) -> Tensor:
    """Resize as TensorFlow 1's ``resize_bilinear`` does: no smoothing, no half pixels.

    Args:
        images: uint8 (B, 3, H, W).
        size: side of the result.

    Returns:
        float32 (B, 3, size, size), 0..255; equal to torch-fidelity's to the bit on a CPU.
    """
    values = images.float()
    left, right, across = _neighbors(values.shape[3], size, values.device)
    top, bottom, down = _neighbors(values.shape[2], size, values.device)
    # Rows of pixels are blended first sideways, on the smaller image, then downwards.
    first = values[:, :, :, left]
    sideways = first + (values[:, :, :, right] - first) * across
    upper = sideways[:, :, top]
    return upper + (sideways[:, :, bottom] - upper) * down[:, None]


def cleanly(images: Tensor, size: int) -> Tensor:
    """Resize with smoothing, bicubic, without rounding in between (clean-fid's rule).

    Args:
        images: uint8 (B, 3, H, W).
        size: side of the result.

    Returns:
        float32 (B, 3, size, size), within 0..255.
    """
    values = images.float()
    if images.shape[2:] == (size, size):
        return values
    resized = F.interpolate(values, (size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 255)


def as_pillow(images: Tensor, size: int) -> Tensor:
    """Resize with Pillow's bilinear filter to 8-bit levels, as AttnGAN's successors did.

    Args:
        images: uint8 (B, 3, H, W), on any device.
        size: side of the result.

    Returns:
        float32 (B, 3, size, size) of whole levels 0..255, on the images' device.
    """
    # The kernel that rounds as Pillow does exists for the CPU alone.
    resized = F.interpolate(images.cpu(), (size, size), mode="bilinear", antialias=True)
    return resized.to(images.device).float()


def _neighbors(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels between which each new one is, and how far behind the first."""
    place = torch.arange(new, dtype=torch.float32, device=device)
    place = place * torch.tensor(old / new, dtype=torch.float32, device=device)
    low = place.long()
    return low, (low + 1).clamp_max(old - 1), place - low.float()
