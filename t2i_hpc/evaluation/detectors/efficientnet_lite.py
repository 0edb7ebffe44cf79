"""EfficientNet-Lite0 and Lite2, detectors whose weights come inside packages: no internet needed.

Their distances rank checkpoints of one run as FID does, but they are other numbers: they are
called "FD (EfficientNet-Lite0)" and "FD (EfficientNet-Lite2)" and must not be compared with FID.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity, NetworkDetector
from t2i_hpc.models.efficientnet import (
    EfficientNetFeatures,
    EfficientNetLite0Features,
    EfficientNetLite2Features,
    efficientnet_path,
)


class EfficientNetLite0(NetworkDetector):
    """Detector of FD (EfficientNet-Lite0): 1280 features, averaged over the last map."""

    features_of: ClassVar[type[EfficientNetFeatures]] = EfficientNetLite0Features

    def __init__(self, device: torch.device, *, precision: str = "float32") -> None:
        super().__init__(self.identity_of(precision), device, precision)
        self._network = self.features_of().to(device)

    @classmethod
    def identity_of(cls, precision: str = "float32") -> DetectorIdentity:
        """Return what is known of the detector; `precision` as in `autocast`."""
        suffix = "" if precision == "float32" else f", {precision}"
        network = cls.features_of
        name = f"EfficientNet-Lite{network.size}"
        return DetectorIdentity(
            name=f"efficientnet_lite{network.size}",
            label=f"{name} on ImageNet{suffix}; this is not FID and not comparable with FID",
            metric_name=f"FD ({name}{suffix})",
            family=f"{name}{suffix}",
            preprocessing=f"antialiased bilinear to {network.side} px, (x - 127) / 128, "
            f"{precision}",
            width=network.pooled_width,
            classes=0,
            sha256=sha256_of_file(efficientnet_path(network.size)),
        )

    @classmethod
    def identify(cls, settings: EvaluationConfig) -> DetectorIdentity:
        """Return what is known of the configured detector."""
        return cls.identity_of(settings.detector_precision)

    @classmethod
    def build(cls, settings: EvaluationConfig, device: torch.device) -> EfficientNetLite0:
        """Build the configured detector."""
        return cls(device, precision=settings.detector_precision)

    def _extract(self, images: Tensor) -> Tensor:
        size = (self.features_of.side, self.features_of.side)
        inputs = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        result: Tensor = self._network((inputs - 127) / 128)[1]
        return result.float()


class EfficientNetLite2(EfficientNetLite0):
    """Detector of FD (EfficientNet-Lite2): likewise, of a wider network at 260 px."""

    features_of = EfficientNetLite2Features
