"""One set of generated images against the real ones: both sides, their parts, the scores.

The only place where protocol, detector, parts and metrics meet; it is handed functions that
draw images and knows neither networks nor data sets.
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
from t2i_hpc.evaluation.compute import Division, Saved, Side, compute_missing, merged, missing_parts
from t2i_hpc.evaluation.detectors.detector import Detector, DetectorIdentity, exact_inference
from t2i_hpc.evaluation.fid import NAMES as MOMENT_NAMES
from t2i_hpc.evaluation.fid import Moments
from t2i_hpc.evaluation.inception_score import NAMES as SPLIT_NAMES
from t2i_hpc.evaluation.inception_score import ScoreSums, groups_of
from t2i_hpc.evaluation.kid import check_subset_size
from t2i_hpc.evaluation.metrics import WITH_ROWS, Measured, measure
from t2i_hpc.evaluation.partial_statistics import Collector, Contents, Statistic, Target
from t2i_hpc.evaluation.precision_recall import check_neighbors
from t2i_hpc.evaluation.protocol import WITH_REAL, Protocol, sorted_once
from t2i_hpc.evaluation.r_precision import NAMES as FOLD_NAMES
from t2i_hpc.evaluation.r_precision import Judge, RetrievalCounts
from t2i_hpc.evaluation.scores import record_score, score_row
from t2i_hpc.sampling.image_files import Draw

_FOLDER = "evaluations"
_CHECKPOINT_DIGITS = 12


@dataclass(frozen=True)
class Subject:
    """The images that are scored.

    Attributes:
        checkpoint: SHA-256 of the weights, or of the folder, that they come from.
        images_seen: images that the weights were trained on, 0 for a folder.
        draw: images by number, uint8 (B, 3, R, R).
        judge: makes what says whether an image's own caption wins; None without captions.
        rate: makes what says how well an image fits its own caption; None without captions.
        describe: says what an image was made of; None for images that are files already.
    """

    checkpoint: str
    images_seen: int
    draw: Draw
    judge: Callable[[], Judge] | None = None
    rate: Callable[[], Rate] | None = None
    describe: Callable[[int], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Comparison:
    """A subject, the real images, and how they are compared.

    Attributes:
        output: folder of scores and parts; a run directory.
        cache: folder of the real side's parts, by content.
        subject: the generated images.
        draw_real: the real images by number, uint8 (B, 3, R, R).
        detector: the feature network, by name and hash.
        protocol: everything that moves a score.
        names: the protocol's name by metric, for people.
        metrics: what is measured, keys of ``values.METRICS``.
        division: how the images are split into parts.
        device: where sums are kept and distances computed.
        warning: what happened to the real images before and moves a score.
        saved: files of the generated images, where they are kept.
    """

    output: Path
    cache: Path
    subject: Subject
    draw_real: Draw
    detector: DetectorIdentity
    protocol: Protocol
    names: Mapping[str, str]
    metrics: Sequence[str]
    division: Division
    device: torch.device
    warning: str | None = None
    saved: Saved | None = None

    @property
    def generated(self) -> Side:
        """The generated images; their parts lie by images, detector and checkpoint."""
        protocol, subject = self.protocol, self.subject
        digest, which = protocol.generated_hash, subject.checkpoint
        target = Target("generated", digest, which, protocol.images, self.division.batch_size)
        folder = self.output / _FOLDER / digest
        folder /= f"{subject.images_seen:010d}-{which[:_CHECKPOINT_DIGITS]}"
        contents = Contents(list(self.statistics.values()), self._rows)
        return Side(target, folder, contents, subject.draw, self.saved)

    @property
    def real(self) -> Side:
        """The real images; all checkpoints and protocols that share them share the files."""
        digest, images = self.protocol.real_hash, self.protocol.real_images
        target = Target("real", digest, "", images, self.division.batch_size)
        contents = Contents([self._moments], self._rows)
        return Side(target, self.cache / digest, contents, self.draw_real)

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
    def sides(self) -> list[Side]:
        """The sides that the metrics need."""
        return [self.generated, *([self.real] if WITH_REAL & {*self.metrics} else [])]

    def check(self) -> None:
        """Refuse what can be refused before any image is drawn.

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
            ("r_precision", "R-precision", self.subject.judge),
            ("clip_score", "the CLIP score", self.subject.rate),
        ):
            if metric in self.metrics and by is None:
                raise EvaluationError(
                    f"{name} asks which caption an image was made of, and a folder of images "
                    f"does not say: score a run, or leave {metric} out of evaluation.metrics"
                )
        for metric, key in (("is", "splits"), ("r_precision", "folds")):
            groups, images = getattr(self.protocol, key), self.protocol.images
            if metric in self.metrics and groups > images:
                raise EvaluationError(
                    f"evaluation.{key}={groups} is more than the {images} images: take fewer"
                )
        for side in self.sides:
            images, name = side.target.images, side.target.side
            if "kid" in self.metrics:
                check_subset_size(self.protocol.kid_subset_size, images, name)
            if "prc" in self.metrics:
                check_neighbors(self.protocol.neighbors, images, name)

    def compute(self, parts: Iterable[int], detector: Detector) -> None:
        """Compute those of the parts, of both sides, that are not there yet."""
        chosen = list(parts)
        for side in self.sides:
            compute_missing(side, detector, self.division, chosen)

    def missing(self) -> dict[int, list[str]]:
        """Return the parts without a valid file, ascending, and of which sides."""
        found: dict[int, list[str]] = {}
        for side in self.sides:
            for part in missing_parts(side, self.division):
                found.setdefault(part, []).append(side.target.side)
        return dict(sorted(found.items()))

    def score(self) -> list[dict[str, Any]]:
        """Merge all parts, record the scores, and return their rows.

        Raises:
            EvaluationError: parts are missing or do not fit together.
        """
        generated, *real = [merged(side, self.division) for side in self.sides]
        measured = Measured(
            generated,
            real[0] if real else None,
            self.protocol,
            self.detector,
            self.device,
            self.statistics,
        )
        with exact_inference():
            values = measure(self.metrics, measured)
        used = sorted_once(one for side in (generated, *real) for one in side.made_with)
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

    @property
    def _rows(self) -> str:
        return self.protocol.features if WITH_ROWS & {*self.metrics} else ""

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
        protocol, judge = self.protocol, self.subject.judge
        if judge is None:
            raise ValueError("check() refuses R-precision of images without captions")
        folds = groups_of(protocol.images, protocol.folds, protocol.seed)
        return RetrievalCounts(folds, protocol.folds, judge())

    def _ratings(self) -> Collector:
        if self.subject.rate is None:
            raise ValueError("check() refuses the CLIP score of images without captions")
        return RatingSums(self.subject.rate())
