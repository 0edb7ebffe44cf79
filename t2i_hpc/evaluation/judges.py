"""Detectors that a run was trained against: their distances flatter it.

A projected discriminator lowers differences in the features of EfficientNet-Lite0, so a distance in
these falls faster than images improve (Kynkäänniemi et al., ICLR 2023, show it of FID). Such a
score is kept from being the only one of a run, and says what it is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity
from t2i_hpc.evaluation.metrics import WITH_FEATURES
from t2i_hpc.evaluation.scores import FILE_NAME

_NOTE = "the run's own discriminator looks through this network, so the distance flatters it"
# Discriminator by its name in the configuration, and the detector of the same weights.
_LOOKS_THROUGH = {"projected": "efficientnet_lite0"}


def is_partial(system: Any, settings: EvaluationConfig) -> bool:
    """Whether what is asked for compares features that the system was trained against."""
    compared = {"fid", *WITH_FEATURES} & {*settings.metrics}
    through = _LOOKS_THROUGH.get(getattr(system, "discriminator", ""))
    return bool(compared) and through == settings.detector


def check_judge(system: Any, settings: EvaluationConfig, scored: Path) -> None:
    """Refuse a partial detector where no other one has scored the run.

    Args:
        system: configuration of the run's system.
        settings: of the evaluation.
        scored: folder that holds the scores so far.

    Raises:
        EvaluationError: there are none by another detector.
    """
    if not is_partial(system, settings):
        return
    rows = read_json_lines(scored / FILE_NAME) if (scored / FILE_NAME).is_file() else []
    name = "EfficientNet-Lite0"
    if not any(name not in str(row.get("detector_label", name)) for row in rows):
        raise EvaluationError(
            f"evaluation.detector={settings.detector} cannot be this run's only judge, since its "
            "discriminator looks through that network: score it by "
            "evaluation.detector=efficientnet_lite2 first"
        )


def labeled(
    detector: DetectorIdentity, system: Any, settings: EvaluationConfig
) -> DetectorIdentity:
    """Return the detector, whose label says where it is partial."""
    if not is_partial(system, settings):
        return detector
    return dataclasses.replace(detector, label=f"{detector.label}; {_NOTE}")
