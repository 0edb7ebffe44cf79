"""Images by number: those of a run's generator, of a folder, of a data split.

Generated images are scored as they are; real ones of any shape are brought to the resolution
that both are compared at. What happened to the real images before moves a score, so it is said.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.data.images import IMAGE_SUFFIXES, Pixels, center_crop, crop_and_flip, decode
from t2i_hpc.data.sidecars import files_below
from t2i_hpc.data.split import DEMO, Split, stack
from t2i_hpc.evaluation.caption_codes import NOTHING_KEPT, CaptionCache, CodesByNumber
from t2i_hpc.evaluation.clip_score import CLIP, Rate, clip_identity
from t2i_hpc.evaluation.detectors import identify_detector
from t2i_hpc.evaluation.pipeline import pooled
from t2i_hpc.evaluation.r_precision import CaptionRanker, CaptionTable, RanksFirst, damsm_encoders
from t2i_hpc.evaluation.reference_statistics import SUFFIX as STATISTICS
from t2i_hpc.evaluation.reference_statistics import ReferenceStatistics, read_reference
from t2i_hpc.evaluation.stored_images import scaled_jpegs, stored_twice
from t2i_hpc.sampling.loading import load_run
from t2i_hpc.sampling.rules import GenerationRules, caption_of
from t2i_hpc.sampling.trained_run import TrainedRun

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_RESIZE_RATIO = (76, 64)  # shorter side before a random crop, over the resolution, as in training


@dataclass(frozen=True)
class RunImages:
    """Images that a run's generator makes, by number; its networks are built for the first one.

    Attributes:
        run: the run directory.
        which: its checkpoint, by number of images, or a weights file.
        settings: of the evaluation.
        device: of the networks.
        data: folder of the run's data, if it was named.
        like: the same of another seed, whose networks serve here too.
        captions: keeps the codes of captions.
    """

    run: Path
    which: str
    settings: EvaluationConfig
    device: torch.device
    data: str = ""
    like: RunImages | None = None
    captions: CaptionCache = NOTHING_KEPT

    def of_seed(self, seed: int) -> RunImages:
        """Return the images that the same networks make by another seed."""
        settings = dataclasses.replace(self.settings, seed=seed)
        return dataclasses.replace(self, settings=settings, like=self.like or self)

    @property
    def rules(self) -> GenerationRules:
        """How the images are generated."""
        return generation_rules(self.settings)

    @cached_property
    def trained(self) -> TrainedRun:
        """The run's networks, with the weights that generate."""
        if self.like:
            return self.like.trained
        trained = load_run(self.run, self.which, device=self.device, data=self.data)
        if self.settings.weights == "latest":
            trained.use_latest_weights()
        return trained

    def generate(self, numbers: range) -> Tensor:
        """Return uint8 (B, 3, R, R) on the device."""
        settings = self.settings
        return self.trained.generate_numbers(numbers, settings.seed, settings.split, self.rules)

    def describe(self, number: int) -> dict[str, Any]:
        """Return what image `number` is made of: key, caption, seed, checkpoint."""
        split, seed = self._described, self.settings.seed
        return {
            "key": split.sample(self.rules.sample_of(number, split.count)).key,
            "caption": caption_of(split, number, seed, self.rules),
            "seed": seed,
            "checkpoint": self.trained.checkpoint_sha256,
        }

    @cached_property
    def _described(self) -> Split:
        # A split of its own: images are generated in another thread than they are described in.
        return self.trained.open_split(self.settings.split)

    def ranks_first(self) -> RanksFirst:
        """Return what says whether an image's own caption ranks first."""
        settings, trained = self.settings, self.trained
        encoders = damsm_encoders(settings, trained, self.rules)
        # A split of its own: images are generated in another thread than captions are ranked in.
        table = CaptionTable.of(trained.open_split(settings.split))

        def kept(make: Callable[[], Tensor]) -> Tensor:
            identity = [encoders.identity(table.texts)] if self.captions.limit else []
            return self.captions.codes(identity, self.device, make)

        return CaptionRanker(
            table,
            encoders.sentences,
            encoders.codes,
            candidates=settings.candidates,
            seed=settings.seed,
            rules=self.rules,
            kept=kept,
        )

    @cached_property
    def clip(self) -> CLIP:
        """The network that rates images, on the device."""
        return self.like.clip if self.like else CLIP(self.settings.clip, self.device)

    def rate(self) -> Rate:
        """Return what says how well images fit the captions that they were made of."""
        settings, rules, clip = self.settings, self.rules, self.clip
        # A split of its own: images are generated in another thread than they are rated in.
        split = self.trained.open_split(settings.split)

        codes = CodesByNumber(
            settings.images,
            lambda number: caption_of(split, number, settings.seed, rules),
            clip.captions,
            self.captions,
            clip_identity(settings.clip),
            self.device,
        )

        def rate(numbers: range, images: Tensor) -> npt.NDArray[np.float64]:
            return clip.scores(images, codes(numbers))

        return rate


def generation_rules(settings: EvaluationConfig) -> GenerationRules:
    """Return how the settings have images generated."""
    return GenerationRules(
        settings.captions,
        settings.truncation,
        settings.rounding,
        settings.caption_tokens,
        settings.images_per_caption,
    )


class ImageFolder:
    """The images in a folder and its sub-folders, in the order of their names.

    Raises:
        EvaluationError: no such folder, or fewer than two images in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise EvaluationError(f"there is no folder {folder}: name one with image files")
        self.folder = folder
        found = (path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
        self.paths = sorted(found, key=lambda path: path.relative_to(folder).as_posix())
        if len(self.paths) < 2:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise EvaluationError(
                f"{folder} holds {len(self.paths)} image(s) ({kinds}): at least 2 are compared"
            )

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.paths)

    @property
    def lossy(self) -> int:
        """Number of files whose compression alone moves a score."""
        return sum(path.suffix.lower() in (".jpg", ".jpeg") for path in self.paths)

    @cached_property
    def digest(self) -> str:
        """The identity of the images: SHA-256 over all names and contents, in order."""
        digest = hashlib.sha256()
        for path in self.paths:
            name = path.relative_to(self.folder).as_posix()
            digest.update(f"{name}\0{sha256_of_file(path)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def resolution(self) -> int:
        """Side of the first image; all of them must be such squares to be scored as they are."""
        return int(self.image(0).shape[0])

    def image(self, number: int) -> Pixels:
        """Decode an image: uint8 (height, width, 3).

        Raises:
            DataError: it is damaged.
        """
        path = self.paths[number]
        return decode(path.read_bytes(), str(path))

    def images_of(self, numbers: Iterable[int]) -> torch.Tensor:
        """Return images as they are, uint8 (B, 3, R, R); beyond the last they begin again.

        Raises:
            EvaluationError: an image is no square of the first one's size.
        """
        _ = self.resolution  # before threads ask for it
        return stack(pooled(self._square, (number % self.count for number in numbers)))

    def _square(self, number: int) -> Pixels:
        image, side = self.image(number), self.resolution
        if image.shape[:2] != (side, side):
            height, width = image.shape[:2]
            raise EvaluationError(
                f"{self.paths[number]} has {width} x {height} px and the first image is {side} px "
                "high: generated images are scored as they are, so they must be equal squares"
            )
        return image


@dataclass(frozen=True)
class RealImages:
    """The images to compare with: how many, what they are, and one by its number.

    Attributes:
        count: how many; 0 where statistics in a file do not say it.
        stored: how they are stored, in words.
        warning: says what happened to them before, when they are compared at a side in px.
        read: reads an image's file; what it returns decodes it, in any thread.
        statistics: those of a file, in place of images.
    """

    count: int
    digest: str
    where: str
    stored: str
    image: Callable[[int], Pixels]
    warning: Callable[[int], str | None] = lambda resolution: None
    statistics: ReferenceStatistics | None = None
    read: Callable[[int], Callable[[], Pixels]] | None = None

    def resized(self, places: Iterable[int], rule: ResizeRule, size: int) -> Tensor:
        """Return stored images by number, uint8 (B, 3, size, size); a pool of threads decodes."""
        read = self.read or (lambda place: partial(self.image, place))
        items = ((place, read(place)) for place in places)
        return stack(pooled(lambda item: rule.resize(item[1](), item[0], size), items))


def real_images(config: EvaluateConfig, data: DataConfig) -> RealImages:
    """Return the images to compare with: of a folder, a split of `data`, or their statistics.

    Raises:
        UserError: they are not there.
    """
    settings = config.evaluation
    if Path(config.reference).suffix == STATISTICS or Path(config.reference).is_file():
        return _of_statistics(config)
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

    def read(number: int) -> Callable[[], Pixels]:  # by one thread at a time
        return partial(split.decode, number, split.sample(number))

    return RealImages(
        split.count, manifest.digest, where, manifest.stored, split.image, warning, read=read
    )


def _of_statistics(config: EvaluateConfig) -> RealImages:
    """Return the statistics of a file in place of images.

    Raises:
        EvaluationError: it does not fit, or images are asked for that it does not have.
    """
    path = Path(config.reference)
    if config.evaluation.real_images is not None:
        raise EvaluationError(
            f"evaluation.real_images chooses among images, and reference={path} holds their "
            "statistics alone: leave it out"
        )
    detector = identify_detector(config.evaluation)
    found = read_reference(path, detector)

    def no_image(number: int) -> Pixels:
        raise ValueError("reference statistics hold no images")

    return RealImages(
        found.gaussian.count or 0,
        found.sha256,
        f"reference={path}",
        found.stored,
        no_image,
        lambda resolution: found.warning(detector),
        found,
    )


def spread(numbers: Iterable[int], wanted: int, count: int) -> list[int]:
    """Return the stored samples that stand for the real images `numbers`.

    `wanted` images are taken evenly spaced from `count` stored ones, since stored order often
    goes by class. Numbers beyond the last image begin again.
    """
    return [number % wanted * count // wanted for number in numbers]


@dataclass(frozen=True)
class ResizeRule:
    """How real images of any shape are brought to the size that they are compared at.

    Attributes:
        crop: center, or random with mirroring.
        filter: bilinear, bicubic or lanczos, always with smoothing.
        seed: of random crops.
    """

    crop: str = "center"
    filter: str = "bilinear"
    seed: int = 1

    def text(self) -> str:
        """Return the choices as a protocol states them."""
        if self.crop == "center":
            return f"shorter side to the resolution by antialiased {self.filter}, center square"
        over, under = _RESIZE_RATIO
        return (
            f"shorter side to {over}/{under} of the resolution by antialiased {self.filter}, "
            f"random square, half of them mirrored, seed {self.seed}"
        )

    def resize(self, image: Pixels, number: int, size: int) -> Pixels:
        """Return uint8 (size, size, 3) of real image `number`, uint8 (height, width, 3)."""
        if self.crop == "center":
            return center_crop(self._resize_shorter(image, size), size)
        over, under = _RESIZE_RATIO
        larger = self._resize_shorter(image, size * over // under)
        rng = generator(self.seed, "crop of a real image", number)
        return crop_and_flip(larger, size, rng)

    def _resize_shorter(self, image: Pixels, size: int) -> Pixels:
        height, width = image.shape[:2]
        shorter = min(height, width)
        if shorter == size:
            return image
        target = (size * width // shorter, size * height // shorter)
        return np.asarray(Image.fromarray(image).resize(target, _FILTERS[self.filter]))
