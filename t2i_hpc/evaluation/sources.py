"""Where the two sides of an evaluation come from, and the protocol that follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError, EvaluationError, RunError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.presets import changed_settings
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.data.images import Pixels
from t2i_hpc.data.split import DEMO, Split, stack
from t2i_hpc.evaluation.clip_score import clip_identity
from t2i_hpc.evaluation.comparison import Subject
from t2i_hpc.evaluation.compute import spread
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity
from t2i_hpc.evaluation.detectors.registry import identify_detector
from t2i_hpc.evaluation.generated_images import RunImages, drawing_rules
from t2i_hpc.evaluation.image_sets import Framing, ImageFolder, scaled_jpegs, stored_twice
from t2i_hpc.evaluation.metrics import METRICS
from t2i_hpc.evaluation.protocol import ARITHMETIC, Protocol
from t2i_hpc.evaluation.r_precision import check_own_encoders, encoders_identity
from t2i_hpc.runs.inputs import locate_data, with_inputs
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.runs.run_directory import open_run
from t2i_hpc.sampling.image_files import Draw
from t2i_hpc.sampling.trained_run import SUFFIX, ChosenWeights, choose_weights, recorded_weights

_SELECTION = "evenly spaced over the split as stored"


# The settings that decide a field of the protocol, where they have other names than the field.
_SETTINGS_OF = {
    "caption_choice": ("captions",),
    "crop": ("real_crop", "real_filter"),
    "preprocessing": ("detector_resize", "detector_precision"),
    "score_side": ("inception_score_size",),
}
# What of a protocol is a place or comes with the data, not with a preset.
_NO_PRESET = frozenset({"data", "captions", "encoders", "clip", "detector_sha256"})


@dataclass(frozen=True)
class Source:
    """All that a configuration names, by hash.

    Attributes:
        output: folder of scores and parts.
        protocol: what moves the scores.
        names: the protocol's name by metric.
        warning: what happened to the real images and moves a score.
        detector: the feature network.
        draw_real: the real images by number.
        subjects: gives what is scored, drawn on a device.
    """

    output: Path
    protocol: Protocol
    names: Mapping[str, str]
    warning: str | None
    detector: DetectorIdentity
    draw_real: Draw
    subjects: Callable[[torch.device], Iterable[Subject]]


@dataclass(frozen=True)
class RealImages:
    """The images to compare with: how many, what they are, and one by its number.

    Attributes:
        stored: how they are stored, in words.
        warning: says what happened to them before, when they are compared at a side in px.
    """

    count: int
    digest: str
    where: str
    stored: str
    image: Callable[[int], Pixels]
    warning: Callable[[int], str | None] = lambda resolution: None


@dataclass(frozen=True)
class Generated:
    """The generated images.

    Attributes:
        captions: digest of the manifest that their captions come from, "" for files.
        resolution: their side in px.
        subjects: gives what is scored, drawn on a device.
    """

    captions: str
    resolution: int
    subjects: Callable[[torch.device], Iterable[Subject]]


def run_source(config: EvaluateConfig) -> Source:
    """Return what evaluates a run's checkpoints.

    Raises:
        UserError: the run, a checkpoint, a split or a file is not there.
    """
    run, settings = Path(config.run), config.evaluation
    trained_on = with_inputs(run, open_run(run))
    data = locate_data(run, trained_on.data, config.data.path)
    captions = Split.open(data, settings.split).manifest.digest
    real = _real_images(config, data)
    chosen = list(_chosen_weights(run, config.checkpoint))
    for weights in chosen:
        check_own_encoders(settings, weights.networks())
    size = trained_on.system.resolution

    def subjects(device: torch.device) -> Iterator[Subject]:
        for weights in chosen:
            which = str(weights.images_seen)
            if config.checkpoint.endswith(SUFFIX):
                which = config.checkpoint
            images = RunImages(run, which, settings, device, config.data.path)
            yield Subject(
                weights.sha256,
                weights.images_seen,
                images.draw,
                images.judge,
                images.rate,
                images.describe,
            )

    return _source(config, Path(config.output or run), real, Generated(captions, size, subjects))


def folder_source(config: EvaluateConfig) -> Source:
    """Return what evaluates a folder of images.

    Raises:
        UserError: a folder is not there or holds too few images.
    """
    folder, settings = Path(config.images), config.evaluation
    if config.run:
        raise ConfigurationError("run= and images= are both given: score the one or the other")
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
            "nothing to compare with: name a folder with reference=, or shards with "
            "evaluation.data="
        )
    subject = Subject(images.digest, 0, images.draw)
    output = Path(config.output or folder.resolve().with_name(f"{folder.resolve().name}-scores"))
    generated = Generated("", images.resolution, lambda device: [subject])
    return _source(config, output, _real_images(config, data), generated)


def _source(
    config: EvaluateConfig,
    output: Path,
    real: RealImages,
    generated: Generated,
) -> Source:
    settings = config.evaluation
    wanted = settings.real_images or real.count
    if real.count < max(2, wanted):
        raise EvaluationError(
            f"{real.where} has {real.count} images, fewer than the {max(2, wanted)} real images "
            "asked for: take a smaller evaluation.real_images or another evaluation.split"
        )
    framing = Framing(settings.real_crop, settings.real_filter, settings.seed)
    detector = identify_detector(settings)

    def draw_real(numbers: range) -> Tensor:
        places = spread(numbers, wanted, real.count)
        size = generated.resolution
        return stack(framing.frame(real.image(place), place, size) for place in places)

    protocol = Protocol(
        data=real.digest,
        captions=generated.captions,
        split=settings.split,
        stored=real.stored,
        images=settings.images,
        real_images=wanted,
        resolution=generated.resolution,
        detector=detector.name,
        detector_sha256=detector.sha256,
        preprocessing=detector.preprocessing,
        seed=settings.seed,
        **_drawing(settings, bool(generated.captions)),
        crop=framing.words(),
        selection=_SELECTION,
        features=settings.features,
        score_side=settings.inception_score_size,
        splits=settings.splits,
        kid_subsets=settings.kid_subsets,
        kid_subset_size=settings.kid_subset_size,
        neighbors=settings.neighbors,
        candidates=settings.candidates,
        folds=settings.folds,
        encoders=encoders_identity(settings) if generated.captions else "",
        clip=_clip(settings, bool(generated.captions)),
        arithmetic=ARITHMETIC,
    )
    names = protocol_names(settings, protocol)
    warning = real.warning(generated.resolution)
    return Source(output, protocol, names, warning, detector, draw_real, generated.subjects)


def protocol_names(settings: EvaluationConfig, protocol: Protocol) -> dict[str, str]:
    """Return the protocol's name by metric.

    It is "… (modified)" where a setting that moves the metric differs from the file of that name.
    """
    changed = changed_settings(settings)
    names = {}
    for metric in METRICS:
        fields = {"split", *protocol.fields_of(metric)} - _NO_PRESET
        moving = {name for field in fields for name in _SETTINGS_OF.get(field, (field,))}
        modified = " (modified)" if changed & moving else ""
        names[metric] = f"{settings.protocol}{modified}"
    return names


def _drawing(settings: EvaluationConfig, from_captions: bool) -> dict[str, str]:
    """Return what the protocol says of the drawing; of files it is not known."""
    names = ("caption_choice", "caption_tokens", "truncation", "rounding", "weights")
    if not from_captions:
        return dict.fromkeys(names, "files as they are")
    return {**drawing_rules(settings).words(), "weights": settings.weights}


def _clip(settings: EvaluationConfig, from_captions: bool) -> str:
    """Return what the protocol says of CLIP, where it is asked or named."""
    wanted = "clip_score" in settings.metrics or settings.clip
    return clip_identity(settings.clip) if from_captions and wanted else ""


def _real_images(config: EvaluateConfig, data: DataConfig) -> RealImages:
    settings = config.evaluation
    if config.reference:
        folder = ImageFolder(Path(config.reference))
        named = f"reference={folder.folder}"

        def lossy(resolution: int) -> str | None:
            return scaled_jpegs(min(folder.image(0).shape[:2]), folder.lossy, named, resolution)

        return RealImages(folder.count, folder.digest, named, "files", folder.image, lossy)
    if settings.data:
        data = dataclasses.replace(data, path=settings.data)
    split = Split.open(data, settings.split)
    where, manifest = f"the split {settings.split!r} of {data.path}", split.manifest

    def warning(resolution: int) -> str | None:
        shipped = data.path == DEMO  # as it is; nobody can build it otherwise
        return None if shipped else stored_twice(manifest, where, resolution)

    return RealImages(split.count, manifest.digest, where, manifest.stored, split.image, warning)


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
