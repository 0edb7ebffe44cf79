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
from t2i_hpc.evaluation.inception_score import NAMES as SPLIT_NAMES
from t2i_hpc.evaluation.inception_score import ScoreSums
from t2i_hpc.evaluation.kid import check_subset_size
from t2i_hpc.evaluation.metrics import WITH_FEATURES, Measured, measure
from t2i_hpc.evaluation.neighbors import check_neighbors
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
    """

    checkpoint: str
    images_seen: int
    images_of: ImagesOf
    ranks_first: Callable[[], RanksFirst] | None = None
    rate: Callable[[], Rate] | None = None
    describe: Callable[[int], Mapping[str, Any]] | None = None


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
        return ImageSet(target, folder, [self._moments], self._dtype, self.real_images_of)

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
        return [self.generated, *([self.real] if needs_real else [])]

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
        for image_set in self.image_sets:
            images, name = image_set.target.images, image_set.target.image_set
            if "kid" in self.metrics:
                check_subset_size(self.protocol.kid_subset_size, images, name)
            if {"prc", "density_coverage"} & {*self.metrics}:
                check_neighbors(self.protocol.neighbors, images, name)

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
        generated, *real = [merged(image_set, self.sharding) for image_set in self.image_sets]
        measured = Measured(
            generated,
            real[0] if real else None,
            self.protocol,
            self.detector,
            self.device,
            self.statistics,
            self.reference,
        )
        with exact_inference():
            values = measure(self.metrics, measured)
        used = sorted_once(one for each in (generated, *real) for one in each.made_with)
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
