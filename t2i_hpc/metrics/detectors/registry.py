"""Detectors by the name that the configuration gives them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.metrics.detectors.base import Detector


def _inception(config: EvaluationConfig, device: torch.device) -> Detector:
    from t2i_hpc.metrics.detectors.inception import InceptionV3
    from t2i_hpc.metrics.weights import inception_weights

    return InceptionV3(inception_weights(config.detector_weights), device)


def _efficientnet_lite0(config: EvaluationConfig, device: torch.device) -> Detector:
    from t2i_hpc.metrics.detectors.efficientnet_lite0 import EfficientNetLite0

    return EfficientNetLite0(device)


DETECTORS: dict[str, Callable[[EvaluationConfig, torch.device], Detector]] = {
    "inception": _inception,
    "efficientnet_lite0": _efficientnet_lite0,
}


def build_detector(config: EvaluationConfig, device: torch.device) -> Detector:
    """Build the detector that the configuration names, on `device`.

    Raises:
        EvaluationError: its weights are missing or damaged.
    """
    return DETECTORS[config.detector](config, device)
