"""Generated images against the real ones: both image sets, their shards, the scores.

The only place where protocol, detector, shards and metrics meet; it is handed functions that
give images and knows neither networks nor data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.clip_score import NAMES as RATING_NAMES
from t2i_hpc.evaluation.clip_score import Rate, RatingSums
from t2i_hpc.evaluation.collectors import Collector, Statistic, groups_of
from t2i_hpc.evaluation.compute import (
    ImageSet,
    SavedFiles,
    Sharding,
    compute_missing,
    merged,
    shards_without_file,
)
from t2i_hpc.evaluation.detectors.detector import Detector, DetectorIdentity, exact_inference
from t2i_hpc.evaluation.fid import NAMES as MOMENT_NAMES
from t2i_hpc.evaluation.fid import Gaussian, Moments
from t2i_hpc.evaluation.fid_infinity import check_images
from t2i_hpc.evaluation.inception_score import NAMES as SPLIT_NAMES
from t2i_hpc.evaluation.inception_score import ScoreSums
from t2i_hpc.evaluation.kid import check_subset_size
from t2i_hpc.evaluation.metrics import WITH_FEATURES, WITH_REAL_FEATURES, Measured, measure
from t2i_hpc.evaluation.neighbors import check_neighbors
from t2i_hpc.evaluation.pictures import Made, save_diversity, save_nearest
from t2i_hpc.evaluation.prompt_diversity import check_groups
from t2i_hpc.evaluation.protocol import WITH_REAL, Protocol, sorted_once
from t2i_hpc.evaluation.r_precision import NAMES as FOLD_NAMES
from t2i_hpc.evaluation.r_precision import RanksFirst, RetrievalCounts
from t2i_hpc.evaluation.scores import record_score, score_row
from t2i_hpc.runs.partial_statistics import Target
from t2i_hpc.sampling.image_files import ImagesOf

_FOLDER = "evaluations"
_CHECKPOINT_DIGITS = 12


@dataclass(frozen=True)
class Subject:
    """The images that are scored.

    Attributes:
        checkpoint: SHA-256 of the weights, or of the folder, that they come from.
        images_seen: images that the weights were trained on, 0 for a folder.
        images_of: gives images by number, uint8 (B, 3, R, R).
        ranks_first: makes what says whether an image's own caption ranks first; None without
            captions.
        rate: makes what says how well an image fits its own caption; None without captions.
        describe: says what an image was made of; None for images that are files already.
        shown: gives images by number for pictures, where `images_of` also writes them.
    """

    checkpoint: str
    images_seen: int
    images_of: ImagesOf
    ranks_first: Callable[[], RanksFirst] | None = None
    rate: Callable[[], Rate] | None = None
    describe: Callable[[int], Mapping[str, Any]] | None = None
    shown: ImagesOf | None = None


@dataclass(frozen=True)
class Comparison:
    """A subject, the real images, and how they are compared.

    Attributes:
        output: folder of scores and partial statistics; a run directory.
        cache: folder of the real images' partial statistics, by content.
        subject: the generated images.
        real_images_of: gives the real images by number, uint8 (B, 3, R, R).
        detector: the feature network, by name and hash.
        protocol: everything that moves a score.
        names: the protocol's name by metric, for people.
        metrics: what is measured, keys of ``metrics.METRICS``.
        sharding: how the image sets are split.
        device: of sums and distances.
        warning: what happened to the real images before and moves a score.
        saved: files of the generated images, where they are kept.
        reference: mean and covariance of the real images, in place of the images.
        left_out: what is said of metrics that were asked for and cannot be measured.
        training_images_of: gives the training images by number, as the real ones; None where no
            metric needs them.
    """

    output: Path
    cache: Path
    subject: Subject
    real_images_of: ImagesOf
    detector: DetectorIdentity
    protocol: Protocol
    names: Mapping[str, str]
    metrics: Sequence[str]
    sharding: Sharding
    device: torch.device
    warning: str | None = None
    saved: SavedFiles | None = None
    reference: Gaussian | None = None
    left_out: str = ""
    training_images_of: ImagesOf | None = None

    @property
    def generated(self) -> ImageSet:
        """The generated images; their files are by images, detector and checkpoint."""
        protocol, subject = self.protocol, self.subject
        digest, which = protocol.generated_hash, subject.checkpoint
        target = Target("generated", digest, which, protocol.images, self.sharding.batch_size)
        folder = self.output / _FOLDER / digest
        folder /= f"{subject.images_seen:010d}-{which[:_CHECKPOINT_DIGITS]}"
        statistics = list(self.statistics.values())
        return ImageSet(target, folder, statistics, self._dtype, subject.images_of, self.saved)

    @property
    def real(self) -> ImageSet:
        """The real images; all checkpoints and protocols that share them share the files."""
        digest, images = self.protocol.real_hash, self.protocol.real_images
        target = Target("real", digest, "", images, self.sharding.batch_size)
        folder = self.cache / digest
        dtype = self.protocol.features if WITH_REAL_FEATURES & {*self.metrics} else ""
        return ImageSet(target, folder, [self._moments], dtype, self.real_images_of)

    @property
    def training(self) -> ImageSet | None:
        """The training images, shared as the real ones are; None where no metric needs them."""
        if self.training_images_of is None or "memorization" not in self.metrics:
            return None
        digest, images = self.protocol.training_hash, self.protocol.training_images
        target = Target("training", digest, "", images, self.sharding.batch_size)
        folder, dtype = self.cache / digest, self.protocol.features
        return ImageSet(target, folder, [self._moments], dtype, self.training_images_of)

    @property
    def statistics(self) -> dict[str, Statistic]:
        """The sums of the generated images by the metric that needs them.

        Those of the Inception score cost nothing, so they are kept for later.
        """
        found = {"fid": self._moments}
        asked = {*self.metrics}
        free = self.protocol.score_side is None and self.protocol.splits <= self.protocol.images
        if self.detector.classes and (free or "is" in asked):
            found["is"] = self._statistic("is", SPLIT_NAMES, self._score_sums)
        if "r_precision" in asked:
            found["r_precision"] = self._statistic("r_precision", FOLD_NAMES, self._retrieval)
        if "clip_score" in asked:
            found["clip_score"] = self._statistic("clip_score", RATING_NAMES, self._ratings)
        return found

    @property
    def image_sets(self) -> list[ImageSet]:
        """The image sets that the metrics need."""
        needs_real = self.reference is None and WITH_REAL & {*self.metrics}
        training = self.training
        return [
            self.generated,
            *([self.real] if needs_real else []),
            *([training] if training else []),
        ]

    def check(self) -> None:
        """Refuse what can be refused before any image is generated.

        Raises:
            EvaluationError: a metric that the detector or the subject cannot serve.
        """
        if not self.metrics:
            raise EvaluationError(
                "evaluation.metrics is empty: name one or more, e.g. evaluation.metrics=[fid]"
            )
        if "is" in self.metrics and not self.detector.classes:
            raise EvaluationError(
                f"an Inception score is of Inception's classes, and {self.detector.name} serves "
                "none: take evaluation.detector=inception or leave is out"
            )
        for metric, name, by in (
            ("r_precision", "R-precision", self.subject.ranks_first),
            ("clip_score", "the CLIP score", self.subject.rate),
        ):
            if metric in self.metrics and by is None:
                raise EvaluationError(
                    f"{name} needs the captions of the images, and a folder of images has none: "
                    f"score a run, or leave {metric} out of evaluation.metrics"
                )
        for metric, key in (("is", "splits"), ("r_precision", "folds")):
            groups, images = getattr(self.protocol, key), self.protocol.images
            if metric in self.metrics and groups > images:
                raise EvaluationError(
                    f"evaluation.{key}={groups} is more than the {images} images: take fewer"
                )
        self._check_new()
        for image_set in self.image_sets:
            images, name = image_set.target.images, image_set.target.image_set
            if "kid" in self.metrics:
                check_subset_size(self.protocol.kid_subset_size, images, name)
            if {"prc", "density_coverage"} & {*self.metrics}:
                check_neighbors(self.protocol.neighbors, images, name)

    def _check_new(self) -> None:
        """Refuse metrics of features whose images are not what they need.

        Raises:
            EvaluationError: says what to set.
        """
        protocol = self.protocol
        if "diversity" in self.metrics:
            if not protocol.captions:
                raise EvaluationError(
                    "per-prompt diversity needs to know which images share a caption, and a folder "
                    "of images does not say it: score a run, or leave diversity out of "
                    "evaluation.metrics"
                )
            check_groups(protocol.images, protocol.images_per_caption, "diversity")
        if "fid_infinity" in self.metrics:
            check_images(protocol.images)
        if "cmmd" in self.metrics and self.detector.name != "clip":
            raise EvaluationError(
                f"CMMD is of CLIP's image codes, not of {self.detector.name}'s features: take "
                "evaluation.detector=clip and name CLIP's folder with evaluation.detector_weights="
            )
        if "memorization" in self.metrics and protocol.training == protocol.data:
            raise EvaluationError(
                "memorization compares with real images that were held out, and the real images "
                "here are the training images: name another evaluation.split or reference="
            )

    def compute(self, shards: Iterable[int], detector: Detector) -> None:
        """Compute those of the shards, of both image sets, that are not there yet."""
        chosen = list(shards)
        for image_set in self.image_sets:
            compute_missing(image_set, detector, self.sharding, chosen)

    def missing(self) -> dict[int, list[str]]:
        """Return the shards without a valid file, ascending, and of which image sets."""
        found: dict[int, list[str]] = {}
        for image_set in self.image_sets:
            for shard in shards_without_file(image_set, self.sharding):
                found.setdefault(shard, []).append(image_set.target.image_set)
        return dict(sorted(found.items()))

    def score(self) -> list[dict[str, Any]]:
        """Merge all shards, record the scores, and return their rows.

        Raises:
            EvaluationError: shards are missing or do not fit together.
        """
        sets = {each.target.image_set: merged(each, self.sharding) for each in self.image_sets}
        measured = Measured(
            sets["generated"],
            sets.get("real"),
            self.protocol,
            self.detector,
            self.device,
            self.statistics,
            self.reference,
            sets.get("training"),
        )
        with exact_inference():
            values = measure(self.metrics, measured)
            self._save_pictures(measured)
        used = sorted_once(one for each in sets.values() for one in each.made_with)
        rows = [
            score_row(
                value,
                self.protocol,
                self.detector,
                name=self.names[value.kind],
                made_with=used,
                checkpoint=self.subject.checkpoint,
                images_seen=self.subject.images_seen,
            )
            for value in values
        ]
        for row in rows:
            record_score(self.output, row)
        if self.saved:
            self.saved.gather()
        return rows

    def _save_pictures(self, measured: Measured) -> None:
        """Write what a number alone does not show: nearest pairs, and images of one caption."""
        folder, shown = self.output, self.subject.shown or self.subject.images_of
        made_of = Made(self.subject.checkpoint, self.subject.images_seen, shown, self._caption)
        if self.training_images_of and "memorization" in self.metrics:
            protocol = self.protocol.hash_of("memorization")
            found, training = measured.memorization, self.training_images_of
            save_nearest(folder, made_of, protocol, found, training)
        if "diversity" in self.metrics:
            protocol, each = self.protocol.hash_of("diversity"), self.protocol.images_per_caption
            save_diversity(folder, made_of, protocol, measured.diversities, each)

    def _caption(self, number: int) -> str:
        """Return the caption that an image was made of, "" where there is none."""
        describe = self.subject.describe
        return str(describe(number).get("caption", "")) if describe else ""

    def real_gaussian(self) -> Gaussian:
        """Return mean and covariance of the real images' features, all of whose shards are there.

        Raises:
            EvaluationError: shards are missing or do not fit together.
        """
        return Moments.from_arrays(merged(self.real, self.sharding).sums).gaussian()

    @property
    def _dtype(self) -> str:
        return self.protocol.features if WITH_FEATURES & {*self.metrics} else ""

    @property
    def _moments(self) -> Statistic:
        width, device = self.detector.width, self.device
        return Statistic(MOMENT_NAMES, lambda: Moments.empty(width, device))

    def _statistic(
        self, metric: str, names: Sequence[str], start: Callable[[], Collector]
    ) -> Statistic:
        return Statistic(names, start, self.protocol.key_of(metric), metric in self.metrics)

    def _score_sums(self) -> Collector:
        protocol = self.protocol
        splits = groups_of(protocol.images, protocol.splits, protocol.seed)
        return ScoreSums(splits, protocol.splits, self.detector.classes, self.device)

    def _retrieval(self) -> Collector:
        protocol, ranks_first = self.protocol, self.subject.ranks_first
        if ranks_first is None:
            raise ValueError("check() refuses R-precision of images without captions")
        folds = groups_of(protocol.images, protocol.folds, protocol.seed)
        return RetrievalCounts(folds, protocol.folds, ranks_first())

    def _ratings(self) -> Collector:
        if self.subject.rate is None:
            raise ValueError("check() refuses the CLIP score of images without captions")
        return RatingSums(self.subject.rate())
