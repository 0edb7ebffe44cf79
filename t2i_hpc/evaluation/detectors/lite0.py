"""EfficientNet-Lite0, a detector whose weights come inside a package: works without internet.

Its distance ranks checkpoints of one run as FID does, but it is another number: it is called
"FD (EfficientNet-Lite0)" and must not be compared with FID.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity, NetworkDetector
from t2i_hpc.models.image_encoder import EFFICIENTNET_SIZE as SIZE
from t2i_hpc.models.image_encoder import (
    EfficientNetLite0Features,
    EfficientNetLite0Trunk,
    efficientnet_path,
)

NAME = "efficientnet_lite0"


def lite0_identity(precision: str = "float32") -> DetectorIdentity:
    """Return what is known of the detector; `precision` as in `autocast`."""
    suffix = "" if precision == "float32" else f", {precision}"
    return DetectorIdentity(
        name=NAME,
        label=f"EfficientNet-Lite0 on ImageNet{suffix}; this is not FID and not comparable with "
        "FID",
        metric_name=f"FD (EfficientNet-Lite0{suffix})",
        family=f"EfficientNet-Lite0{suffix}",
        preprocessing=f"antialiased bilinear to {SIZE} px, (x - 127) / 128, {precision}",
        width=EfficientNetLite0Trunk.pooled_width,
        classes=0,
        sha256=sha256_of_file(efficientnet_path()),
    )


class EfficientNetLite0(NetworkDetector):
    """Detector of FD (EfficientNet-Lite0): 1280 features, averaged over the last map."""

    def __init__(self, device: torch.device, *, precision: str = "float32") -> None:
        super().__init__(lite0_identity(precision), device, precision)
        self._network = EfficientNetLite0Features().to(device)

    @classmethod
    def identify(cls, settings: EvaluationConfig) -> DetectorIdentity:
        """Return what is known of the configured detector."""
        return lite0_identity(settings.detector_precision)

    @classmethod
    def build(cls, settings: EvaluationConfig, device: torch.device) -> EfficientNetLite0:
        """Build the configured detector."""
        return cls(device, precision=settings.detector_precision)

    def _extract(self, images: Tensor) -> Tensor:
        inputs = F.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", antialias=True)
        result: Tensor = self._network((inputs - 127) / 128)[1]
        return result.float()
