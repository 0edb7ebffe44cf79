"""Generated images against the real ones: both image sets, their shards, the scores.

The only place where protocol, detector, shards and metrics meet; it is handed functions that
give images and knows neither networks nor data sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from t2i_hpc.evaluation.clip_score import NAMES as RATING_NAMES
from t2i_hpc.evaluation.clip_score import Rate, RatingSums
from t2i_hpc.evaluation.collectors import Collector, Statistic, groups_of
from t2i_hpc.evaluation.compute import (
    ImageSet,
    MergedStatistics,
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
from t2i_hpc.evaluation.lpips_diversity import NAMES as LPIPS_NAMES
from t2i_hpc.evaluation.lpips_diversity import CaptionDistances, VectorsOf
from t2i_hpc.evaluation.metric_checks import check_comparison
from t2i_hpc.evaluation.metrics import (
    WITH_FEATURES,
    WITH_REAL_FEATURES,
    Measured,
    Value,
    measure,
    over_seeds,
)
from t2i_hpc.evaluation.pictures import Made, save_diversity, save_nearest
from t2i_hpc.evaluation.protocol import WITH_REAL, Protocol, sorted_once
from t2i_hpc.evaluation.r_precision import NAMES as FOLD_NAMES
from t2i_hpc.evaluation.r_precision import RanksFirst, RetrievalCounts
from t2i_hpc.evaluation.real_halves import FEWEST, HalfMoments, half_size, real_distance
from t2i_hpc.evaluation.real_halves import NAMES as HALF_NAMES
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
        of_seed: gives the same subject drawn by another seed; None for images that are files.
    """

    checkpoint: str
    images_seen: int
    images_of: ImagesOf
    ranks_first: Callable[[], RanksFirst] | None = None
    rate: Callable[[], Rate] | None = None
    describe: Callable[[int], Mapping[str, Any]] | None = None
    shown: ImagesOf | None = None
    of_seed: Callable[[int], Subject] | None = None


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
        reference_halves: what its file says of the distance of real images from other real ones.
        left_out: what is said of metrics that were asked for and cannot be measured.
        training_images_of: gives the training images by number, as the real ones; None where no
            metric needs them.
        lpips: makes what turns images into LPIPS's vectors; None where no metric needs it.
        others: the same with the generated images of further seeds; scores are means over all.
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
    reference_halves: tuple[float, str] | None = None
    left_out: str = ""
    training_images_of: ImagesOf | None = None
    lpips: Callable[[], VectorsOf] | None = None
    others: Sequence[Comparison] = ()

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
        statistics = [self._moments, *([self._halves] if self._halves else [])]
        return ImageSet(target, folder, statistics, dtype, self.real_images_of)

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
        if "lpips" in asked:
            found["lpips"] = self._statistic("lpips", LPIPS_NAMES, self._distances)
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
        check_comparison(self)

    def compute(self, shards: Iterable[int], detector: Detector) -> None:
        """Compute those of the shards, of both image sets, that are not there yet."""
        chosen = list(shards)
        for comparison in (self, *self.others):
            for image_set in comparison.image_sets:
                compute_missing(image_set, detector, self.sharding, chosen)

    def missing(self) -> dict[int, list[str]]:
        """Return the shards without a valid file, ascending, and of which image sets."""
        found: dict[int, list[str]] = {}
        for image_set in (each for one in (self, *self.others) for each in one.image_sets):
            for shard in shards_without_file(image_set, self.sharding):
                sets, name = found.setdefault(shard, []), image_set.target.image_set
                sets += [] if name in sets else [name]
        return dict(sorted(found.items()))

    def score(self) -> list[dict[str, Any]]:
        """Merge all shards, record the scores, and return their rows.

        Raises:
            EvaluationError: shards are missing or do not fit together.
        """
        measured, values, used = self._measure()
        if self.others:
            further = [other._measure()[1:] for other in self.others]
            values = over_seeds([values, *(each for each, _ in further)])
            used = sorted_once([*used, *(one for _, each in further for one in each)])
        protocol = dataclasses.replace(self.protocol, seeds=1 + len(self.others))
        rows = [
            score_row(
                value,
                protocol,
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
        with exact_inference():  # after the scores, which are there whatever becomes of pictures
            self._save_pictures(measured)
        for saved in (one.saved for one in (self, *self.others)):
            if saved:
                saved.gather()
        return rows

    def _measure(self) -> tuple[Measured, list[Value], list[Mapping[str, str]]]:
        """Merge all shards of one seed; return also its scores and what the images went through."""
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
        real = self._halves_of(sets["real"]) if "real" in sets else self.reference_halves
        values = [dataclasses.replace(v, real=real) if v.kind == "fid" else v for v in values]
        used = sorted_once(one for each in sets.values() for one in each.made_with)
        return measured, values, used

    def real_halves(self) -> tuple[float, str] | None:
        """Return the distance of real images from other real ones, and the hash of which ones.

        None where they were summed up without their halves.
        """
        return self._halves_of(merged(self.real, self.sharding))

    def _halves_of(self, real: MergedStatistics) -> tuple[float, str] | None:
        halves = self._halves
        if halves is None or not halves.stored <= real.sums.keys():
            return None
        file = self.cache / self.protocol.real_hash / f"real-halves-{halves.key}.json"
        return real_distance(real.sums, halves.from_file(real.sums), file), halves.key

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

    @property
    def _halves(self) -> Statistic | None:
        """The moments of half of the real images, which cost little where all are seen anyway."""
        protocol, width, device = self.protocol, self.detector.width, self.device
        real = protocol.real_images
        if "fid" not in self.metrics or real < FEWEST:
            return None
        half = half_size(protocol.images, real)
        return Statistic(
            HALF_NAMES,
            lambda: HalfMoments(real, half, protocol.seed, width, device),
            protocol.halves_hash,
            wanted=False,
        )

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

    def _distances(self) -> Collector:
        if self.lpips is None:
            raise ValueError("no network of LPIPS was given")
        return CaptionDistances(self.lpips(), self.protocol.images_per_caption)

    def _ratings(self) -> Collector:
        if self.subject.rate is None:
            raise ValueError("check() refuses the CLIP score of images without captions")
        return RatingSums(self.subject.rate())
