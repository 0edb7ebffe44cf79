"""From an evaluation's configuration to what is compared.

No network is built before it generates: whoever only counts shards (a merge, a launcher that asks
which are missing) needs the hashes alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError, EvaluationError, RunError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.gan_settings import SystemConfig
from t2i_hpc.config.tasks import EvaluateConfig, TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.evaluation.caption_codes import CaptionCache
from t2i_hpc.evaluation.clip_score import clip_identity
from t2i_hpc.evaluation.comparison import Comparison, Subject
from t2i_hpc.evaluation.compute import Sharding
from t2i_hpc.evaluation.detectors import identify_detector
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity
from t2i_hpc.evaluation.image_sources import (
    ImageFolder,
    RealImages,
    ResizeRule,
    RunImages,
    generation_rules,
    real_images,
    spread,
)
from t2i_hpc.evaluation.judges import check_judge, labeled, with_second_judge
from t2i_hpc.evaluation.lpips_diversity import LPIPS, lpips_identity
from t2i_hpc.evaluation.metrics import without_images
from t2i_hpc.evaluation.protocol import ARITHMETIC, Protocol
from t2i_hpc.evaluation.protocol_names import protocol_names
from t2i_hpc.evaluation.r_precision import check_own_encoders, encoders_identity
from t2i_hpc.evaluation.scores import NOT_KNOWN
from t2i_hpc.evaluation.training_images import (
    check_training,
    run_training_images,
    training_images,
)
from t2i_hpc.runs.inputs import locate_data, with_inputs
from t2i_hpc.runs.layout import is_exported, list_checkpoints
from t2i_hpc.runs.partial_statistics import shard_range
from t2i_hpc.runs.run_directory import open_run
from t2i_hpc.sampling.chosen_weights import (
    SUFFIX,
    ChosenWeights,
    choose_weights,
    recorded_weights,
)
from t2i_hpc.sampling.image_files import ImagesOf, SavedImages
from t2i_hpc.sampling.loading import find_weights

_CACHE, _CAPTIONS = "real-statistics", "caption-codes"
_CPU = torch.device("cpu")
_SELECTION = "evenly spaced over the split as stored"
_FILES = "files as they are"
_GENERATION = ("caption_choice", "caption_tokens", "truncation", "rounding", "weights")


@dataclass(frozen=True)
class Generated:
    """The generated images.

    Attributes:
        output: folder of scores and partial statistics.
        captions: digest of the manifest that their captions come from, "" for files.
        resolution: their side in px.
        subjects: gives what is scored, generated on a device.
        training: opens the images that it was trained on; None where nobody knows them.
        system: configuration of the system that generated them, None for files.
    """

    output: Path
    captions: str
    resolution: int
    subjects: Callable[[torch.device], Iterable[Subject]]
    training: Callable[[], RealImages] | None = None
    system: SystemConfig | None = None


def comparisons(
    config: EvaluateConfig,
    *,
    device: torch.device = _CPU,
    shards: int | None = None,
    alone: bool = True,
) -> Iterator[Comparison]:
    """Give what the configuration compares, one checkpoint after the other.

    Args:
        config: of the command ``evaluate``.
        device: of generator, detector and sums.
        shards: how many there are; None for ``evaluation.shards``.
        alone: whether no other judge scores beside this one (:func:`by_all_judges`).

    Raises:
        UserError: a folder, run, checkpoint, split or weights file that is not there, too few
            images, metrics that are not available.
    """
    settings = config.evaluation
    sharding = Sharding(shards or settings.shards, settings.batch_size)
    if settings.shard is not None:
        shard_range(settings.images, sharding.shards, settings.shard)
    generated, real = _of_folder(config) if config.images else _of_run(config, alone)
    resize_rule = ResizeRule(settings.real_crop, settings.real_filter, settings.seed)
    wanted, detector = _count_real(settings, real), identify_detector(settings)
    detector = labeled(detector, generated.system, settings)
    metrics, left_out = settings.metrics, ""
    if real.statistics:
        metrics, left_out = without_images(metrics, real.where)
    training = (
        training_images(settings.training, generated.training)
        if "memorization" in metrics
        else None
    )
    protocol = _protocol(
        settings,
        generated,
        real,
        detector,
        real_count=wanted,
        crop=resize_rule.text(),
        training=training,
    )
    names = protocol_names(settings, protocol)

    def images_of(source: RealImages, count: int) -> ImagesOf:
        def give(numbers: range) -> Tensor:
            places = spread(numbers, count, source.count)
            return source.resized(places, resize_rule, generated.resolution)

        return give

    for subject in generated.subjects(device):
        comparison = Comparison(
            output=generated.output,
            cache=Path(settings.cache or generated.output.parent / _CACHE),
            subject=subject,
            real_images_of=images_of(real, wanted),
            detector=detector,
            protocol=protocol,
            names=names,
            warning=real.warning(generated.resolution),
            metrics=metrics,
            sharding=sharding,
            device=device,
            reference=real.statistics.gaussian if real.statistics else None,
            reference_halves=real.statistics.real_halves if real.statistics else None,
            left_out=left_out,
            lpips=cache(lambda: LPIPS(settings.lpips, device).vectors),
            training_images_of=images_of(training, protocol.training_images) if training else None,
        )
        comparison.check()
        first, *others = (
            one if settings.save_images == "none" else _saving(one, settings)
            for one in (comparison, *_of_other_seeds(comparison, settings))
        )
        yield dataclasses.replace(first, others=others)


def by_all_judges(config: EvaluateConfig) -> Iterator[EvaluateConfig]:
    """Give an evaluation, and the same by another judge where one alone could mislead."""
    system = None if config.images else _weights_of(Path(config.run), config.checkpoint)[0].system
    yield from with_second_judge(config, system)


def _of_other_seeds(comparison: Comparison, settings: EvaluationConfig) -> Iterator[Comparison]:
    """Give a comparison drawn by the other seeds of ``evaluation.seeds``.

    Raises:
        ConfigurationError: the images are files already.
    """
    of_seed, protocol = comparison.subject.of_seed, comparison.protocol
    if settings.seeds == 1:
        return
    if of_seed is None:
        raise ConfigurationError(
            "evaluation.seeds draws by several seeds, and the images of images= are files already: "
            "leave it out"
        )
    for seed in range(settings.seed + 1, settings.seed + settings.seeds):
        other = dataclasses.replace(protocol, seed=seed)
        yield dataclasses.replace(comparison, subject=of_seed(seed), protocol=other)


def _saving(comparison: Comparison, settings: EvaluationConfig) -> Comparison:
    """Return a comparison that also writes its generated images.

    Raises:
        ConfigurationError: they are files already.
    """
    subject = comparison.subject
    if subject.describe is None:
        raise ConfigurationError(
            "evaluation.save_images writes what a run generates: the images of images= are files "
            "already, leave it out"
        )
    saved = SavedImages(
        comparison.generated.folder / "images",
        settings.save_images,
        settings.images,
        settings.batch_size,
        subject.describe,
    )
    writing = dataclasses.replace(
        subject, images_of=saved.writing(subject.images_of), shown=subject.images_of
    )
    return dataclasses.replace(comparison, subject=writing, saved=saved)


def _of_run(config: EvaluateConfig, alone: bool) -> tuple[Generated, RealImages]:
    """Return what a run's checkpoints generate, and the real images.

    Raises:
        UserError: the run, a checkpoint, a split or a file is not there.
    """
    run, settings = Path(config.run), config.evaluation
    trained_on, chosen = _weights_of(run, config.checkpoint)
    data = locate_data(run, trained_on.data, config.data.path)
    captions = Split.open(data, settings.split).manifest.digest
    real = real_images(config, data)
    for weights in chosen:
        check_own_encoders(settings, weights.networks())
    size = trained_on.system.resolution
    # An exported folder holds what generates and nothing else.
    beside = run.resolve().with_name(f"{run.resolve().name}-scores") if is_exported(run) else run
    output, system = Path(config.output or beside), trained_on.system
    folder = Path(settings.cache) / "captions" if settings.cache else output.parent / _CAPTIONS
    captions_cache = CaptionCache(folder, int(settings.captions_cache * 1e9))

    def subjects(device: torch.device) -> Iterator[Subject]:
        for weights in chosen:
            which = str(weights.images_seen)
            if config.checkpoint.endswith(SUFFIX) or is_exported(run):
                which = config.checkpoint
            images = RunImages(
                run, which, settings, device, config.data.path, captions=captions_cache
            )
            yield _subject(weights, images)

    def training() -> RealImages:
        return run_training_images(run, trained_on.data, config.data.path)

    if alone:
        check_judge(system, settings, output)
    return Generated(output, captions, size, subjects, training, system), real


def _subject(weights: ChosenWeights, images: RunImages) -> Subject:
    """Return what a run's weights generate."""
    return Subject(
        weights.sha256,
        weights.images_seen,
        images.generate,
        images.ranks_first,
        images.rate,
        images.describe,
        of_seed=lambda seed: _subject(weights, images.of_seed(seed)),
    )


def _weights_of(run: Path, checkpoint: str) -> tuple[TrainConfig, list[ChosenWeights]]:
    """Return what a run directory or an exported folder was trained with, and its checkpoints."""
    if is_exported(run):
        trained_on, weights = find_weights(run, checkpoint)
        return trained_on, [weights]
    return with_inputs(run, open_run(run)), list(_chosen_weights(run, checkpoint))


def _of_folder(config: EvaluateConfig) -> tuple[Generated, RealImages]:
    """Return the images of a folder, and the real ones.

    Raises:
        UserError: a folder is not there or holds too few images.
    """
    folder, settings = Path(config.images), config.evaluation
    if config.run:
        raise ConfigurationError("run= and images= are both given: score the one or the other")
    if settings.images_per_caption > 1:
        raise ConfigurationError(
            "evaluation.images_per_caption says how a run generates, and the images of images= are "
            "files already: leave it out"
        )
    if config.data.path:
        raise ConfigurationError(
            "data.path= says where a run's captions are: name the real images of images= with "
            "evaluation.data="
        )
    images = ImageFolder(folder)
    if images.count < settings.images:
        raise EvaluationError(
            f"{folder} holds {images.count} images, fewer than evaluation.images="
            f"{settings.images}: generate more, or take fewer (another protocol)"
        )
    data = DataConfig(path=settings.data)
    if not (config.reference or settings.data):
        raise ConfigurationError(
            "nothing to compare with: name a folder or statistics with reference=, or shards with "
            "evaluation.data="
        )
    subject = Subject(images.digest, 0, images.images_of)
    output = Path(config.output or folder.resolve().with_name(f"{folder.resolve().name}-scores"))
    generated = Generated(output, "", images.resolution, lambda device: [subject])
    return generated, real_images(config, data)


def _chosen_weights(run: Path, checkpoint: str) -> Iterator[ChosenWeights]:
    numbers = checkpoint.split(",")
    if len(numbers) > 1 and all(number.strip().isdecimal() for number in numbers):
        for number in numbers:
            yield recorded_weights(run, int(number))
        return
    if checkpoint != "all":
        yield choose_weights(run, checkpoint)
        return
    there = list_checkpoints(run)
    if not there:
        raise RunError(f"{run} has no checkpoint yet: train it first")
    for images in there:
        yield recorded_weights(run, images)


def _count_real(settings: EvaluationConfig, real: RealImages) -> int:
    """Return how many real images are compared.

    Raises:
        EvaluationError: there are fewer.
    """
    if real.statistics:
        return real.count
    wanted = settings.real_images or real.count
    if real.count < max(2, wanted):
        raise EvaluationError(
            f"{real.where} has {real.count} images, fewer than the {max(2, wanted)} real images "
            "asked for: take a smaller evaluation.real_images or another evaluation.split"
        )
    return wanted


def _protocol(
    settings: EvaluationConfig,
    generated: Generated,
    real: RealImages,
    detector: DetectorIdentity,
    *,
    real_count: int,
    crop: str,
    training: RealImages | None,
) -> Protocol:
    """Return what moves the scores; of image files it is not known how they were generated."""
    from_captions = bool(generated.captions)
    generation = dict.fromkeys(_GENERATION, _FILES)
    if from_captions:
        generation = {**generation_rules(settings).text(), "weights": settings.weights}
    clip = from_captions and ("clip_score" in settings.metrics or settings.clip)
    return Protocol(
        data=real.digest,
        captions=generated.captions,
        split=settings.split,
        stored=real.stored,
        images=settings.images,
        real_images=real_count,
        resolution=generated.resolution,
        detector=detector.name,
        detector_sha256=detector.sha256,
        preprocessing=detector.preprocessing,
        seed=settings.seed,
        **generation,
        crop=NOT_KNOWN if real.statistics else crop,
        selection=NOT_KNOWN if real.statistics else _SELECTION,
        features=settings.features,
        score_side=settings.inception_score_size,
        splits=settings.splits,
        kid_subsets=settings.kid_subsets,
        kid_subset_size=settings.kid_subset_size,
        mind_directions=settings.mind_directions,
        infinity_points=settings.infinity_points,
        training=training.digest if training else "",
        training_images=check_training(settings, training) if training else 0,
        memorized_share=settings.memorized_share,
        images_per_caption=settings.images_per_caption,
        neighbors=settings.neighbors,
        candidates=settings.candidates,
        folds=settings.folds,
        encoders=encoders_identity(settings) if from_captions else "",
        clip=clip_identity(settings.clip) if clip else "",
        lpips=lpips_identity(settings.lpips) if "lpips" in settings.metrics else "",
        arithmetic=ARITHMETIC,
        seeds=1,
    )
