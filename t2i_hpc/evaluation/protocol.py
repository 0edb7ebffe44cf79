"""What a score was measured with. Two scores may be compared only if their protocols agree.

Each metric has a hash of its own, over exactly the settings that move it: the Fréchet distance
keeps its hash when KID takes other subsets. The hash stands on every score; the hash of the
generated images and the detector names the folder of partial statistics, that of the real
images their cache. The protocol's name is for people alone: it is in no hash.

What images went through to become statistics: recorded with a score, in no hash.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import t2i_hpc
from t2i_hpc.common.files import sha256_of_json
from t2i_hpc.evaluation.real_halves import half_size

# The version of our own arithmetic. Raise it with every fix to generation, detectors or
# statistics that moves a score: old statistics are then computed again, not merged with new ones.
ARITHMETIC = 1
OWN_ENCODERS = "the run's own"
WITH_REAL = frozenset(
    {"fid", "kid", "mind", "prc", "density_coverage", "cmmd", "memorization", "fid_infinity"}
)
_HASH_DIGITS = 12
_WITH_DETECTOR = WITH_REAL | {"is", "diversity"}

_GENERATED = (
    "captions",
    "images",
    "resolution",
    "caption_choice",
    "caption_tokens",
    "truncation",
    "weights",
    "rounding",
)
_REAL = ("data", "real_images", "resolution", "crop", "selection")
_DETECTOR = ("detector", "detector_sha256", "preprocessing")
_OWN: dict[str, tuple[str, ...]] = {
    "fid": (),
    "is": ("score_side", "splits", "seed"),
    "kid": ("features", "kid_subsets", "kid_subset_size", "seed"),
    "mind": ("features", "mind_directions", "seed"),
    "prc": ("features", "neighbors"),
    "density_coverage": ("features", "neighbors"),
    "cmmd": ("features",),
    "memorization": ("features", "training", "training_images", "memorized_share"),
    "diversity": ("features", "images_per_caption"),
    "lpips": ("images_per_caption", "lpips"),
    "fid_infinity": ("features", "infinity_points", "seed"),
    "r_precision": ("candidates", "folds", "encoders", "seed"),
    "clip_score": ("clip",),
}


@dataclass(frozen=True)
class Protocol:
    """The settings of a comparison.

    Attributes:
        data: digest of the manifest of the real images, or of their folder.
        captions: digest of the manifest that the captions are from; "" for image files.
        split: split of both; its content is in the digests.
        stored: how the real images are stored; its effect is in the digest.
        images: number of generated images N.
        real_images: number of real images.
        resolution: side of the compared images in px.
        detector: name of the feature network.
        detector_sha256: hash of its weights.
        preprocessing: how images reach it, and its arithmetic.
        seed: of noise, captions, splits, folds and subsets; image i depends on (seed, i) alone.
        caption_choice: which captions images are made of.
        caption_tokens: how many of their tokens are read at most.
        truncation: how noise is drawn.
        weights: which of the generator's weights generate.
        rounding: how generated values become 8-bit levels.
        crop: how real images are brought to the resolution.
        selection: which images of the split are the real ones.
        features: dtype in which features are kept for metrics that are no sums.
        score_side: side in px to which images are scaled for the Inception score (Pillow's
            bilinear, 8 bits); None: as they are.
        splits: of the Inception score.
        kid_subsets, kid_subset_size: of KID.
        mind_directions: random projections of MIND.
        infinity_points: subsets of FID∞.
        training: digest of the training images of memorization, "" without it.
        training_images: number of them.
        memorized_share: of the held-out images, which sets memorization's threshold.
        images_per_caption: images in a row that share a caption.
        neighbors: k of precision and recall, density and coverage.
        candidates: captions that an image chooses among for R-precision, its own included.
        folds: of R-precision.
        encoders: hash of R-precision's encoders, or OWN_ENCODERS.
        clip: hashes of the CLIP score's network and how images reach it, "" without it.
        lpips: hashes of LPIPS's network and weights, "" without it.
        arithmetic: version of our own arithmetic, :data:`ARITHMETIC`.
        seeds: how many seeds images were drawn by, of `seed` and the numbers after it; the score
            is the mean over them.
    """

    data: str
    captions: str
    split: str
    stored: str
    images: int
    real_images: int
    resolution: int
    detector: str
    detector_sha256: str
    preprocessing: str
    seed: int
    caption_choice: str
    caption_tokens: str
    truncation: str
    weights: str
    rounding: str
    crop: str
    selection: str
    features: str
    score_side: int | None
    splits: int
    kid_subsets: int
    kid_subset_size: int
    mind_directions: int
    infinity_points: int
    training: str
    training_images: int
    memorized_share: float
    images_per_caption: int
    neighbors: int
    candidates: int
    folds: int
    encoders: str
    clip: str
    lpips: str
    arithmetic: int
    seeds: int = 1

    def fields_of(self, metric: str) -> list[str]:
        """Return the names of the settings that move a metric.

        Args:
            metric: a key of ``metrics.METRICS``.
        """
        names = {"arithmetic", *self._generation, *_OWN[metric]}
        names |= {*_DETECTOR} if metric in _WITH_DETECTOR else set()
        names |= {*_REAL} if metric in WITH_REAL else set()
        names |= {"seeds"} if self.seeds > 1 else set()  # scores of one seed keep their hashes
        return [field.name for field in dataclasses.fields(self) if field.name in names]

    def hash_of(self, metric: str) -> str:
        """Return 12 hexadecimal digits that name the protocol of a metric."""
        return self._hash(self.fields_of(metric))

    def text_of(self, metric: str) -> dict[str, Any]:
        """Return the settings of a metric's hash, and what is said of the images, by name."""
        told = {*self.fields_of(metric), "split"}
        told |= {"stored"} if metric in WITH_REAL else set()
        return {name: value for name, value in dataclasses.asdict(self).items() if name in told}

    def key_of(self, metric: str) -> str:
        """Return 12 digits over what a metric's sums depend on beside images and detector."""
        return self._hash(_OWN[metric])

    @property
    def generated_hash(self) -> str:
        """12 digits that name the generated images as the detector sees them."""
        return self._hash(["arithmetic", *self._generation, *_DETECTOR])

    @property
    def real_hash(self) -> str:
        """12 digits that name the real images as the detector sees them."""
        return self._hash(["arithmetic", *_REAL, *_DETECTOR])

    @property
    def training_hash(self) -> str:
        """12 digits that name the training images as the detector sees them."""
        training = ("training", "training_images", "resolution", "crop")
        return self._hash(["arithmetic", *training, *_DETECTOR])

    @property
    def halves_hash(self) -> str:
        """12 digits that name the real images, and which of them stand for generated ones."""
        names = ("arithmetic", *_REAL, *_DETECTOR, "seed")
        settings = {name: getattr(self, name) for name in names}
        half = half_size(self.images, self.real_images)
        return sha256_of_json({**settings, "half": half})[:_HASH_DIGITS]

    @property
    def _generation(self) -> tuple[str, ...]:
        """What decides the generated images; of image files no seed does."""
        return (*_GENERATED, "seed") if self.captions else _GENERATED

    def _hash(self, names: Iterable[str]) -> str:
        return sha256_of_json({name: getattr(self, name) for name in names})[:_HASH_DIGITS]


def made_with(device: torch.device) -> dict[str, str]:
    """Return the versions of torch and of this package, and the device in words."""
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else f"{platform.machine()} CPU"
    return {"device": name, "t2i_hpc": t2i_hpc.__version__, "torch": str(torch.__version__)}


def sorted_once(found: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return each of them once, in one order."""
    unlike = {tuple(sorted(one.items())) for one in found}
    return [dict(items) for items in sorted(unlike)]
