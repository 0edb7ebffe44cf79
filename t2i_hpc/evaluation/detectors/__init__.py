"""Feature networks by the name that the configuration gives them.

What a detector is, by name and hash, is known without building its network, so that a protocol
can be hashed by those who compute nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from t2i_hpc.common.errors import EvaluationError

if TYPE_CHECKING:
    import torch

    from t2i_hpc.config.evaluation import EvaluationConfig
    from t2i_hpc.evaluation.detectors.detector import DetectorIdentity, NetworkDetector

# Module of this package and class: what is not asked for is not imported.
DETECTORS = {
    "inception": ("inception", "InceptionV3"),
    "inception_literature": ("inception", "LiteratureInceptionV3"),
    "efficientnet_lite0": ("efficientnet_lite", "EfficientNetLite0"),
    "efficientnet_lite2": ("efficientnet_lite", "EfficientNetLite2"),
    "dinov2": ("pretrained", "DINOv2"),
    "clip": ("clip_codes", "CLIPCodes"),
}


def identify_detector(settings: EvaluationConfig) -> DetectorIdentity:
    """Return what is known of the configured detector without building it.

    Raises:
        EvaluationError: its weights are missing or damaged, or it cannot resize as asked.
    """
    if settings.detector_resize != "own" and settings.detector != "inception":
        raise EvaluationError(
            f"evaluation.detector_resize={settings.detector_resize} belongs to "
            f"evaluation.detector=inception, not to {settings.detector}: leave it out"
        )
    return _class_of(settings).identify(settings)


def build_detector(settings: EvaluationConfig, device: torch.device) -> NetworkDetector:
    """Build the detector that the configuration names, on `device`.

    Raises:
        EvaluationError: its weights are missing or damaged.
    """
    return _class_of(settings).build(settings, device)


def _class_of(settings: EvaluationConfig) -> type[NetworkDetector]:
    module, name = DETECTORS[settings.detector]
    found: type[NetworkDetector] = getattr(import_module(f"{__name__}.{module}"), name)
    return found
