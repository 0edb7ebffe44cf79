"""EfficientNet-Lite0, a detector whose weights come inside a package: works without internet.

Its distance ranks checkpoints of one run as FID does, but it is another number: it is called
"FD (EfficientNet-Lite0)" and must not be compared with FID.

Detectors by the name that the configuration gives them.

What a detector is, by name and hash, is known without building its network, so that a protocol
can be hashed by those who compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.detectors.detector import Detector, DetectorIdentity, NetworkDetector
from t2i_hpc.models.efficientnet_lite0 import (
    POOLED_WIDTH,
    SIZE,
    EfficientNetLite0Features,
    weights_path,
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
        width=POOLED_WIDTH,
        classes=0,
        sha256=sha256_of_file(weights_path()),
    )


class EfficientNetLite0(NetworkDetector):
    """Detector of FD (EfficientNet-Lite0): 1280 features, averaged over the last map."""

    def __init__(self, device: torch.device, *, precision: str = "float32") -> None:
        super().__init__(lite0_identity(precision), device, precision)
        self._network = EfficientNetLite0Features().to(device)

    def _look(self, images: Tensor) -> Tensor:
        inputs = F.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", antialias=True)
        result: Tensor = self._network((inputs - 127) / 128)[1]
        return result.float()


@dataclass(frozen=True)
class DetectorEntry:
    """How a detector is identified and how it is built."""

    identify: Callable[[EvaluationConfig], DetectorIdentity]
    build: Callable[[EvaluationConfig, torch.device], Detector]


def identify_detector(config: EvaluationConfig) -> DetectorIdentity:
    """Return what is known of the configured detector without building it.

    Raises:
        EvaluationError: its weights are missing or damaged, or it cannot resize as asked.
    """
    if config.detector_resize != "own" and config.detector != "inception":
        raise EvaluationError(
            f"evaluation.detector_resize={config.detector_resize} belongs to "
            f"evaluation.detector=inception, not to {config.detector}: leave it out"
        )
    return DETECTORS[config.detector].identify(config)


def build_detector(config: EvaluationConfig, device: torch.device) -> Detector:
    """Build the detector that the configuration names, on `device`.

    Raises:
        EvaluationError: its weights are missing or damaged.
    """
    return DETECTORS[config.detector].build(config, device)


def _identify_inception(config: EvaluationConfig) -> DetectorIdentity:
    from t2i_hpc.evaluation.detectors.inception import inception_identity
    from t2i_hpc.evaluation.detectors.weights import inception_weights

    path = inception_weights(config.detector_weights)
    return inception_identity(path, config.detector_resize, config.detector_precision)


def _build_inception(config: EvaluationConfig, device: torch.device) -> Detector:
    from t2i_hpc.evaluation.detectors.inception import InceptionV3
    from t2i_hpc.evaluation.detectors.weights import inception_weights

    path = inception_weights(config.detector_weights)
    wanted = "is" in config.metrics
    return InceptionV3(
        path,
        device,
        resize=config.detector_resize,
        precision=config.detector_precision,
        score_side=config.inception_score_size if wanted else None,
    )


def _identify_literature(config: EvaluationConfig) -> DetectorIdentity:
    from t2i_hpc.evaluation.detectors.inception import LITERATURE_NAME, literature_identity
    from t2i_hpc.evaluation.detectors.weights import literature_file, weights_of

    path = weights_of(literature_file(), LITERATURE_NAME, config.detector_weights)
    return literature_identity(path, config.detector_precision)


def _build_literature(config: EvaluationConfig, device: torch.device) -> Detector:
    from t2i_hpc.evaluation.detectors.inception import LITERATURE_NAME, LiteratureInceptionV3
    from t2i_hpc.evaluation.detectors.weights import literature_file, weights_of

    path = weights_of(literature_file(), LITERATURE_NAME, config.detector_weights)
    return LiteratureInceptionV3(path, device, precision=config.detector_precision)


def _identify_lite0(config: EvaluationConfig) -> DetectorIdentity:

    return lite0_identity(config.detector_precision)


def _build_lite0(config: EvaluationConfig, device: torch.device) -> Detector:

    return EfficientNetLite0(device, precision=config.detector_precision)


def _identify_dinov2(config: EvaluationConfig) -> DetectorIdentity:
    from t2i_hpc.evaluation.detectors.pretrained import dinov2_identity

    return dinov2_identity(config.detector_weights, config.detector_precision)


def _build_dinov2(config: EvaluationConfig, device: torch.device) -> Detector:
    from t2i_hpc.evaluation.detectors.pretrained import DINOv2

    return DINOv2(config.detector_weights, device, precision=config.detector_precision)


DETECTORS = {
    "inception": DetectorEntry(_identify_inception, _build_inception),
    "inception_literature": DetectorEntry(_identify_literature, _build_literature),
    "efficientnet_lite0": DetectorEntry(_identify_lite0, _build_lite0),
    "dinov2": DetectorEntry(_identify_dinov2, _build_dinov2),
}
