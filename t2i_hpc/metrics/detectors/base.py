"""What a detector is: a fixed network, known by the hash of its weights."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Detector(Protocol):
    """A network whose features are compared.

    Attributes:
        name: the name in the configuration.
        label: one line for people: which network, which weights, what the score is not.
        metric_name: what the distance over its features is called.
        preprocessing: how images reach the network; part of the protocol.
        width: number of features D.
        sha256: of the weights file; part of the protocol.
    """

    name: str
    label: str
    metric_name: str
    preprocessing: str
    width: int
    sha256: str

    def features(self, images: Tensor) -> Tensor:
        """Return float32 (B, width) for uint8 images (B, 3, H, W), on the detector's device."""
