"""Detectors that a run was trained against: their distances flatter it.

A projected discriminator lowers differences in the features of EfficientNet-Lite0, so a distance in
these falls faster than images improve (Kynkäänniemi et al., ICLR 2023, show it of FID). GALIP's
networks look through a CLIP, and its generator raises a CLIP's similarity of image and caption, so
distances in a CLIP's codes and CLIP scores are of that kind. Such a distance is kept from being the
only one of a run, and all such scores say what they are.

A generator that is trained on a Fréchet distance (``system.fd_weight``) is flattered by all of
them, most in the features that it was trained in: every score says so, and FID brings another
judge's distance with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.systems import OTHER_JUDGE, detector_within
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.evaluation.scores import FILE_NAME, FLATTERS

if TYPE_CHECKING:
    from t2i_hpc.evaluation.detectors.detector import DetectorIdentity

_CLIP, _LITE0 = "clip", "efficientnet_lite0"
# What the labels of such detectors say, and what a score by them adds.
_NAMES = {_LITE0: "EfficientNet-Lite0", _CLIP: "CLIP"}
_NOTES = {
    _LITE0: f"the run's own discriminator looks through this network, so the distance {FLATTERS}",
    _CLIP: f"the run's own networks look through a CLIP, so the distance {FLATTERS}",
}
_SCORE_NOTE = f"CLIP score: the run was trained by a CLIP's similarity, so the score {FLATTERS}"
_GAMED = "the run was trained on a Fréchet distance, which FID and its like follow"
_IN_LOSS = f"the distance of this network's features is what it was trained on, so it {FLATTERS}"
GAMED = (
    "trained on a Fréchet distance (system.fd_weight), so distances are low whether images are "
    "good or not (FID can be gamed): compare by several judges, R-precision and the pictures"
)


def is_gamed(system: Any) -> bool:
    """Whether a system's configuration trains its generator on a Fréchet distance."""
    return bool(getattr(system, "fd_weight", 0.0))


def with_second_judge(config: EvaluateConfig, system: Any) -> Iterator[EvaluateConfig]:
    """Give an evaluation and, of FID of such a system, that of another detector's distance."""
    yield config
    settings = config.evaluation
    if not is_gamed(system) or "fid" not in settings.metrics or Path(config.reference).is_file():
        return  # a file of statistics is one detector's
    detector = OTHER_JUDGE if settings.detector != OTHER_JUDGE else _LITE0
    other = dataclasses.replace(
        settings, detector=detector, detector_weights="", metrics=["fid"], save_images="none"
    )
    other = dataclasses.replace(other, detector_resize=EvaluationConfig().detector_resize)
    yield dataclasses.replace(config, evaluation=other, export_statistics="")


def is_partial(system: Any, settings: EvaluationConfig) -> bool:
    """Whether what is asked for compares features that the system was trained against."""
    from t2i_hpc.evaluation.metrics import WITH_FEATURES  # with torch, which tables do without

    compared = {"fid", *WITH_FEATURES} & {*settings.metrics}
    return bool(compared) and detector_within(system) == settings.detector


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
    name = _NAMES[settings.detector]
    if not any(name not in str(row.get("detector_label", name)) for row in rows):
        raise EvaluationError(
            f"evaluation.detector={settings.detector} cannot be this run's only judge, since it "
            "was trained through that network: score it by "
            f"evaluation.detector={OTHER_JUDGE} first"
        )


def labeled(
    detector: DetectorIdentity, system: Any, settings: EvaluationConfig
) -> DetectorIdentity:
    """Return the detector, whose label says where it or the CLIP score is partial."""
    if detector_within(system) == _CLIP:
        detector = dataclasses.replace(detector, notes={"clip_score": _SCORE_NOTE})
    notes = [_GAMED] if is_gamed(system) else []
    if is_partial(system, settings):
        notes.append(_IN_LOSS if notes else _NOTES[settings.detector])
    return dataclasses.replace(detector, label="; ".join([detector.label, *notes]))
