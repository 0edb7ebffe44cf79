"""DINOv2 of a local folder as a detector; nothing is downloaded.

Its features follow people's judgment better than Inception's: Stein et al. (NeurIPS 2023) compare
the class tokens of whole images at 224 px. The distance depends on the size of the network; the
hash of its weights in the protocol keeps sizes apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity, NetworkDetector, cleanly
from t2i_hpc.models.pretrained_folder import CONFIG, PretrainedFolder

NAME = "dinov2"
_KEY = "evaluation.detector_weights"
_SIZE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, channel by channel


def dinov2_identity(given: str, precision: str) -> DetectorIdentity:
    """Return what is known of the detector.

    Args:
        given: folder of the network, or its model.safetensors.
        precision: float32 or bfloat16.

    Raises:
        EvaluationError: the folder or the library that reads it is not there.
    """
    folder = _open(given)
    width = folder.config["hidden_size"]
    suffix = "" if precision == "float32" else f", {precision}"
    return DetectorIdentity(
        name=NAME,
        label=f"class token of the DINOv2 with {width} features{suffix}; this is not FID",
        metric_name=f"FD (DINOv2{suffix})",
        family=f"DINOv2{suffix}",
        preprocessing=f"antialiased bicubic to {_SIZE} px, unrounded, (x / 255 - {_MEAN}) / "
        f"{_STD}, {precision}",
        width=width,
        classes=0,
        sha256=folder.sha256,
    )


class DINOv2(NetworkDetector):
    """Detector of FD (DINOv2): the class token after the last layer norm."""

    def __init__(self, given: str, device: torch.device, *, precision: str = "float32") -> None:
        from transformers import Dinov2Model

        super().__init__(dinov2_identity(given, precision), device, precision)
        self._network = _open(given).load(Dinov2Model, device)
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (_MEAN, _STD)
        )

    @classmethod
    def identify(cls, settings: EvaluationConfig) -> DetectorIdentity:
        """Return what is known of the configured detector."""
        return dinov2_identity(settings.detector_weights, settings.detector_precision)

    @classmethod
    def build(cls, settings: EvaluationConfig, device: torch.device) -> DINOv2:
        """Build the configured detector."""
        return cls(settings.detector_weights, device, precision=settings.detector_precision)

    def _extract(self, images: Tensor) -> Tensor:
        inputs = (cleanly(images, _SIZE) / 255 - self._mean) / self._std
        token: Tensor = self._network(inputs).last_hidden_state[:, 0]
        return token.float()


def _open(given: str) -> PretrainedFolder:
    folder = PretrainedFolder.open(given, _KEY, NAME)
    if not isinstance(folder.config.get("hidden_size"), int):
        raise EvaluationError(f"{_KEY}={given}: {CONFIG} states no hidden_size: copy it again")
    return folder
