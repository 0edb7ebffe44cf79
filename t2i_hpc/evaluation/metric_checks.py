"""What metrics need of images, captions and detector: refused before any image is generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.fid_infinity import check_images
from t2i_hpc.evaluation.kid import check_subset_size
from t2i_hpc.evaluation.lpips_diversity import check_batches
from t2i_hpc.evaluation.neighbors import check_neighbors
from t2i_hpc.evaluation.prompt_diversity import check_groups

if TYPE_CHECKING:
    from t2i_hpc.evaluation.comparison import Comparison


def check_comparison(compared: Comparison) -> None:
    """Refuse what can be refused before any image is generated.

    Raises:
        EvaluationError: a metric that the detector or the subject cannot serve.
    """
    if not compared.metrics:
        raise EvaluationError(
            "evaluation.metrics is empty: name one or more, e.g. evaluation.metrics=[fid]"
        )
    if "is" in compared.metrics and not compared.detector.classes:
        raise EvaluationError(
            f"an Inception score is of Inception's classes, and {compared.detector.name} serves "
            "none: take evaluation.detector=inception or leave is out"
        )
    for metric, name, by in (
        ("r_precision", "R-precision", compared.subject.ranks_first),
        ("clip_score", "the CLIP score", compared.subject.rate),
    ):
        if metric in compared.metrics and by is None:
            raise EvaluationError(
                f"{name} needs the captions of the images, and a folder of images has none: "
                f"score a run, or leave {metric} out of evaluation.metrics"
            )
    for metric, key in (("is", "splits"), ("r_precision", "folds")):
        groups, images = getattr(compared.protocol, key), compared.protocol.images
        if metric in compared.metrics and groups > images:
            raise EvaluationError(
                f"evaluation.{key}={groups} is more than the {images} images: take fewer"
            )
    _check_features(compared)
    for target in (image_set.target for image_set in compared.image_sets):
        images, name = target.images, target.image_set
        if name == "training":
            continue  # memorization alone compares with them
        if "kid" in compared.metrics:
            check_subset_size(compared.protocol.kid_subset_size, images, name)
        if {"prc", "density_coverage"} & {*compared.metrics}:
            check_neighbors(compared.protocol.neighbors, images, name)


def _check_features(compared: Comparison) -> None:
    """Refuse metrics of features whose images are not what they need.

    Raises:
        EvaluationError: says what to set.
    """
    protocol = compared.protocol
    for metric in sorted({"diversity", "lpips"} & {*compared.metrics}):
        if not protocol.captions:
            raise EvaluationError(
                f"{metric} needs to know which images share a caption, and a folder of images "
                f"does not say it: score a run, or leave {metric} out of evaluation.metrics"
            )
        check_groups(protocol.images, protocol.images_per_caption, metric)
    if "lpips" in compared.metrics:
        check_batches(compared.sharding.batch_size, protocol.images_per_caption)
    if "fid_infinity" in compared.metrics:
        check_images(protocol.images)
    if "cmmd" in compared.metrics and compared.detector.name != "clip":
        raise EvaluationError(
            f"CMMD is of CLIP's image codes, not of {compared.detector.name}'s features: take "
            "evaluation.detector=clip and name CLIP's folder with evaluation.detector_weights="
        )
    if "memorization" in compared.metrics and protocol.training == protocol.data:
        raise EvaluationError(
            "memorization compares with real images that were held out, and the real images "
            "here are the training images: name another evaluation.split or reference="
        )
