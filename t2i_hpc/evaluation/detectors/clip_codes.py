"""CLIP's image codes as features (Radford et al., ICML 2021): what CMMD compares.

Codes are of length 1, as CMMD's authors have them. Any CLIP in a local folder serves; CMMD's
published numbers are of ViT-L/14 at 336 px.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.clip_score import MEAN, STD
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity, NetworkDetector, cleanly
from t2i_hpc.models.pretrained_folder import CONFIG, PretrainedFolder

NAME = "clip"
_KEY = "evaluation.detector_weights"


class CLIPCodes(NetworkDetector):
    """Detector of CMMD and FD (CLIP): projected image codes of length 1."""

    def __init__(self, given: str, device: torch.device, *, precision: str = "float32") -> None:
        from transformers import CLIPModel

        super().__init__(clip_codes_identity(given, precision), device, precision)
        folder = _open(given)
        self._size = _sizes(folder)[1]
        self._network = folder.load(CLIPModel, device)
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD)
        )

    @classmethod
    def identify(cls, settings: EvaluationConfig) -> DetectorIdentity:
        """Return what is known of the configured detector."""
        return clip_codes_identity(settings.detector_weights, settings.detector_precision)

    @classmethod
    def build(cls, settings: EvaluationConfig, device: torch.device) -> CLIPCodes:
        """Build the configured detector."""
        return cls(settings.detector_weights, device, precision=settings.detector_precision)

    def _extract(self, images: Tensor) -> Tensor:
        pixels = cleanly(images, self._size).round() / 255
        seen = self._network.vision_model(pixel_values=(pixels - self._mean) / self._std)
        codes: Tensor = self._network.visual_projection(seen.pooler_output)
        return torch.nn.functional.normalize(codes.float(), dim=1)


def clip_codes_identity(given: str, precision: str) -> DetectorIdentity:
    """Return what is known of the detector.

    Args:
        given: folder of a CLIP, or its model.safetensors.
        precision: float32 or bfloat16.

    Raises:
        EvaluationError: the folder or the library that reads it is not there.
    """
    folder = _open(given)
    width, size = _sizes(folder)
    suffix = "" if precision == "float32" else f", {precision}"
    return DetectorIdentity(
        name=NAME,
        label=f"image codes of the CLIP with {width} features at {size} px{suffix}; this is not "
        "FID",
        metric_name=f"FD (CLIP{suffix})",
        family=f"CLIP{suffix}",
        preprocessing=f"antialiased bicubic to {size} px, whole levels, (x / 255 - {MEAN}) / "
        f"{STD}, codes of length 1, {precision}",
        width=width,
        classes=0,
        sha256=folder.sha256,
    )


def _open(given: str) -> PretrainedFolder:
    return PretrainedFolder.open(given, _KEY, NAME)


def _sizes(folder: PretrainedFolder) -> tuple[int, int]:
    """Return the length of a code, and the side in px of the images that the network reads.

    Raises:
        EvaluationError: config.json states neither.
    """
    vision: Any = folder.config.get("vision_config")
    side = vision.get("image_size", 224) if isinstance(vision, dict) else None
    # transformers leaves out of config.json what is its default.
    width = folder.config.get("projection_dim", 512)
    if not (isinstance(side, int) and isinstance(width, int)):
        raise EvaluationError(
            f"{_KEY}: {folder.folder / CONFIG} states no image_size or projection_dim: copy it "
            "again"
        )
    return width, side
