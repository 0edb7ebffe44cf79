"""What a detector is: a fixed network, known by the hash of its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from t2i_hpc.metrics.detectors.arithmetic import autocast, exact_inference, in_batches


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


class Detector(Protocol):
    """A network whose features are compared."""

    identity: DetectorIdentity

    def features(self, images: Tensor) -> Tensor:
        """Return float32 (B, D) for uint8 images (B, 3, H, W), on the detector's device."""

    def logits(self, features: Tensor, images: Tensor) -> Tensor:
        """Return float32 (B, C) for features (B, D) of uint8 images (B, 3, H, W)."""


class NetworkDetector(ABC):
    """A detector that looks at batches of images with the arithmetic of all detectors.

    Args:
        identity: what is known of it.
        device: where its network lies.
        precision: of its convolutions, float32 or bfloat16.
    """

    def __init__(self, identity: DetectorIdentity, device: torch.device, precision: str) -> None:
        self.identity = identity
        self._device, self._precision = device, precision

    def features(self, images: Tensor) -> Tensor:
        """Return float32 (B, D) for uint8 images (B, 3, H, W) of any size."""
        with exact_inference(), autocast(self._precision, self._device):
            return in_batches(self._look, images, self._device)

    def logits(self, features: Tensor, images: Tensor) -> Tensor:
        """Return float32 (B, 0): Inception scores are of a network that says otherwise."""
        return features[:, :0]

    @abstractmethod
    def _look(self, images: Tensor) -> Tensor:
        """Return float32 (B, D) for a batch of uint8 images on the detector's device."""
