"""EfficientNet-Lite0, a detector whose weights come inside a package: works without internet.

Its distance ranks checkpoints of one run as FID does, but it is another number: it is called
"FD (EfficientNet-Lite0)" and must not be compared with FID.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.efficientnet_lite0 import (
    POOLED_WIDTH,
    SIZE,
    EfficientNetLite0Features,
    weights_path,
)
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.metrics.detectors.arithmetic import exact_inference


class EfficientNetLite0:
    """Detector of FD (EfficientNet-Lite0): 1280 features, averaged over the last map."""

    name = "efficientnet_lite0"
    label = "EfficientNet-Lite0 on ImageNet; this is not FID and not comparable with FID"
    metric_name = "FD (EfficientNet-Lite0)"
    preprocessing = f"antialiased bilinear to {SIZE} px, (x - 127) / 128"
    width = POOLED_WIDTH

    def __init__(self, device: torch.device) -> None:
        self.sha256 = sha256_of_file(weights_path())
        self._device = device
        self._network = EfficientNetLite0Features().to(device)

    def features(self, images: Tensor) -> Tensor:
        """Return float32 (B, 1280) for uint8 images (B, 3, H, W) of any size."""
        with exact_inference():
            inputs = images.to(self._device).float()
            size = (SIZE, SIZE)
            inputs = F.interpolate(inputs, size, mode="bilinear", antialias=True)
            result: Tensor = self._network((inputs - 127) / 128)[1]
        return result
