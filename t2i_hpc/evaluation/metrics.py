"""The metrics by the names that the configuration gives them, from merged statistics."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.clip_score import clip_score
from t2i_hpc.evaluation.cmmd import code_discrepancy
from t2i_hpc.evaluation.collectors import Statistic
from t2i_hpc.evaluation.compute import MergedStatistics
from t2i_hpc.evaluation.density_coverage import density_and_coverage
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity
from t2i_hpc.evaluation.fid import Gaussian, Moments, frechet_distance
from t2i_hpc.evaluation.fid_infinity import extrapolated_distance
from t2i_hpc.evaluation.inception_score import inception_score
from t2i_hpc.evaluation.kid import kernel_distance
from t2i_hpc.evaluation.lpips_diversity import lpips_diversity, metric_name
from t2i_hpc.evaluation.memorization import Memorization, memorization
from t2i_hpc.evaluation.mind import monge_distance
from t2i_hpc.evaluation.neighbors import Neighborhoods
from t2i_hpc.evaluation.precision_recall import precision_and_recall
from t2i_hpc.evaluation.prompt_diversity import caption_diversities, mean_and_error
from t2i_hpc.evaluation.protocol import OWN_ENCODERS, Protocol
from t2i_hpc.evaluation.r_precision import r_precision
from t2i_hpc.runs.partial_statistics import Arrays, Features

# Metrics that are no sums: those that compare images one by one, and those of the generated alone.
WITH_REAL_FEATURES = frozenset({"kid", "mind", "prc", "density_coverage", "cmmd", "memorization"})
WITH_FEATURES = WITH_REAL_FEATURES | {"diversity", "fid_infinity"}
_FRECHET = re.compile(r"\bFI?D\b")


@dataclass(frozen=True)
class Value:
    """A score.

    Attributes:
        metric: what is measured.
        value: the score.
        std: its standard deviation over splits, subsets or folds, the CLIP score's standard error
            over images; None where it has none.
        better: "lower" or "higher".
        n_real: real images that it was compared with, 0 where there are none.
        kind: the key of :data:`METRICS` that it belongs to.
        each: the values of each seed where `value` is their mean, empty where there is one seed.
        real: of a Fréchet distance: the distance of real images from other real images, and the
            hash of which ones.
    """

    metric: str
    value: float
    std: float | None
    better: str
    n_real: int
    kind: str = "fid"
    each: tuple[float, ...] = ()
    real: tuple[float, str] | None = None


@dataclass(frozen=True)
class Measured:
    """What scores are made of.

    Attributes:
        generated: statistics of the generated images.
        real: of the real ones, None where no metric needs them.
        protocol, detector: what it was measured with.
        device: of kernels and distances of images.
        statistics: which sums of the generated images a metric needs.
        reference: mean and covariance of the real images, in place of `real`.
        training: statistics of the training images, None where no metric needs them.
    """

    generated: MergedStatistics
    real: MergedStatistics | None
    protocol: Protocol
    detector: DetectorIdentity
    device: torch.device
    statistics: Mapping[str, Statistic]
    reference: Gaussian | None = None
    training: MergedStatistics | None = None

    def sums(self, metric: str) -> Arrays:
        """Return the sums of the generated images that a metric needs."""
        return self.statistics[metric].from_file(self.generated.sums)

    def name(self, metric: str, *more: str) -> str:
        """Return a metric's name, with what differs from its usual network and images."""
        told = ", ".join(filter(None, (*more, self.detector.family)))
        return f"{metric} ({told})" if told else metric

    def against(self) -> MergedStatistics:
        """Return the statistics of the real images."""
        if self.real is None:
            raise ValueError("the statistics of the real images were not computed")
        return self.real

    @cached_property
    def neighborhoods(self) -> Neighborhoods:
        """What precision, recall, density and coverage are made of, computed once for all."""
        both = _features(self.generated), _features(self.against())
        return Neighborhoods.of(*both, self.protocol.neighbors, self.device)

    @cached_property
    def real_gaussian(self) -> Gaussian:
        """Mean and covariance of the real images' features."""
        if self.reference is not None:
            return self.reference
        return Moments.from_arrays(self.against().sums).gaussian()

    @cached_property
    def memorization(self) -> Memorization:
        """The generated images and the training images nearest to them."""
        if self.training is None:
            raise ValueError("the statistics of the training images were not computed")
        return memorization(
            *map(_features, (self.generated, self.against(), self.training)),
            share=self.protocol.memorized_share,
            device=self.device,
        )

    @cached_property
    def diversities(self) -> npt.NDArray[np.float64]:
        """The diversity of each caption's images, float64 (captions,)."""
        return caption_diversities(_features(self.generated), self.protocol.images_per_caption)


def measure(metrics: Sequence[str], measured: Measured) -> list[Value]:
    """Return the scores asked for; the Fréchet distance comes last.

    Who keeps the best checkpoints takes the metric that was recorded last.
    """
    ordered = sorted(set(metrics), key=lambda name: (name == "fid", list(METRICS).index(name)))
    return [replace(value, kind=name) for name in ordered for value in METRICS[name](measured)]


def without_images(asked: list[str], where: str) -> tuple[list[str], str]:
    """Return the metrics that mean and covariance allow, and a sentence on those that they do not.

    Args:
        asked: keys of :data:`METRICS`.
        where: names the statistics.

    Raises:
        EvaluationError: no metric is left.
    """
    impossible = [name for name in asked if name in WITH_REAL_FEATURES]
    if not impossible:
        return asked, ""
    said = (
        f"{where} holds mean and covariance alone, and {' and '.join(impossible)} compare "
        "features image by image"
    )
    if len(impossible) == len(asked):
        raise EvaluationError(f"{said}: ask for fid, or name a folder of images")
    return [name for name in asked if name not in impossible], f"{said}: left out"


def over_seeds(values: Sequence[Sequence[Value]]) -> list[Value]:
    """Return the mean of each score over seeds, with the standard deviation over them.

    Args:
        values: of each seed, two or more, in one order.
    """
    found = []
    for same in zip(*values, strict=True):
        each = tuple(value.value for value in same)
        mean, spread = statistics.fmean(each), statistics.stdev(each)
        found.append(replace(same[0], value=mean, std=spread, each=each))
    return found


def _frechet(m: Measured) -> list[Value]:
    generated = Moments.from_arrays(m.generated.sums)
    value = frechet_distance(generated, m.real_gaussian)
    return [Value(m.detector.metric_name, value, None, "lower", m.protocol.real_images)]


def _inception_score(m: Measured) -> list[Value]:
    size = m.protocol.score_side
    name = m.name("Inception score", "" if size is None else f"{size} px")
    return [Value(name, *inception_score(m.sums("is")), "higher", 0)]


def _kid(m: Measured) -> list[Value]:
    p = m.protocol
    score = kernel_distance(
        _features(m.generated),
        _features(m.against()),
        subsets=p.kid_subsets,
        size=p.kid_subset_size,
        seed=p.seed,
        device=m.device,
    )
    return [Value(m.name("KID"), *score, "lower", p.real_images)]


def _mind(m: Measured) -> list[Value]:
    p = m.protocol
    value = monge_distance(
        _features(m.generated),
        _features(m.against()),
        directions=p.mind_directions,
        seed=p.seed,
        device=m.device,
    )
    return [Value(m.name("MIND"), value, None, "lower", p.real_images)]


def _precision_recall(m: Measured) -> list[Value]:
    precision, recall = precision_and_recall(m.neighborhoods)
    network, n_real = m.detector.network, m.protocol.real_images
    return [
        Value(m.name("precision", network), precision, None, "higher", n_real),
        Value(m.name("recall", network), recall, None, "higher", n_real),
    ]


def _density_coverage(m: Measured) -> list[Value]:
    density, coverage = density_and_coverage(m.neighborhoods)
    network, n_real = m.detector.network, m.protocol.real_images
    return [
        Value(m.name("density", network), density, None, "higher", n_real),
        Value(m.name("coverage", network), coverage, None, "higher", n_real),
    ]


def _cmmd(m: Measured) -> list[Value]:
    value = code_discrepancy(_features(m.generated), _features(m.against()), device=m.device)
    return [Value(m.name("CMMD"), value, None, "lower", m.protocol.real_images)]


def _memorization(m: Measured) -> list[Value]:
    n_real = m.protocol.real_images
    return [Value(m.name("memorization"), *m.memorization.score, "lower", n_real)]


def _diversity(m: Measured) -> list[Value]:
    return [Value(m.name("per-prompt diversity"), *mean_and_error(m.diversities), "higher", 0)]


def _lpips(m: Measured) -> list[Value]:
    return [Value(metric_name(m.protocol.lpips), *lpips_diversity(m.sums("lpips")), "higher", 0)]


def _fid_infinity(m: Measured) -> list[Value]:
    p = m.protocol
    score = extrapolated_distance(
        _features(m.generated),
        m.real_gaussian,
        points=p.infinity_points,
        seed=p.seed,
        device=m.device,
    )
    name = _FRECHET.sub(r"\g<0>∞", m.detector.metric_name, count=1)
    return [Value(name, *score, "lower", p.real_images)]


def _r_precision(m: Measured) -> list[Value]:
    own = m.protocol.encoders == OWN_ENCODERS
    name = "R-precision (each run's own encoders)" if own else "R-precision"
    return [Value(name, *r_precision(m.sums("r_precision")), "higher", 0)]


def _clip_score(m: Measured) -> list[Value]:
    return [Value("CLIP score", *clip_score(m.sums("clip_score")), "higher", 0)]


def _features(statistics: MergedStatistics) -> Features:
    if statistics.features is None:
        raise ValueError("features were not kept")
    return statistics.features


METRICS: Mapping[str, Callable[[Measured], list[Value]]] = {
    "is": _inception_score,
    "kid": _kid,
    "mind": _mind,
    "prc": _precision_recall,
    "density_coverage": _density_coverage,
    "cmmd": _cmmd,
    "memorization": _memorization,
    "diversity": _diversity,
    "lpips": _lpips,
    "r_precision": _r_precision,
    "clip_score": _clip_score,
    "fid_infinity": _fid_infinity,
    "fid": _frechet,
}
