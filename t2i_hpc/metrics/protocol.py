"""What a score was measured with. Two scores may be compared only if their protocols agree.

Everything that moves a score without the generator having changed stands here; the hash of it
stands on every score, every part of an evaluation and in the folder's name. The protocol's
name is for people alone: it is in no hash.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from t2i_hpc.common.files import sha256_of_json

OWN_ENCODERS = "the run's own"
_HASH_DIGITS = 12
# What decides the real images' statistics; the rest decides what is made of them.
_REAL_SIDE = (
    "data",
    "split",
    "real_images",
    "resolution",
    "detector",
    "detector_sha256",
    "preprocessing",
    "crop",
    "selection",
    "features",
)


@dataclass(frozen=True)
class Protocol:
    """The settings of a comparison.

    Attributes:
        data: digest of the manifest of the real images, or of their folder.
        captions: digest of the manifest that the captions were drawn from, or of the folder of
            generated images.
        split: split of both.
        images: number of generated images N.
        real_images: number of real images.
        resolution: side of the compared images in px.
        detector: name of the feature network.
        detector_sha256: hash of its weights.
        preprocessing: how images reach it, and its arithmetic.
        seed: of noise, captions, splits, folds and subsets; image i depends on (seed, i) alone.
        caption_choice: which captions images are made of.
        caption_words: how many of their words are read at most.
        truncation: how noise is drawn.
        weights: which of the generator's weights draw.
        rounding: how generated values become 8-bit levels.
        crop: how real images are brought to the resolution.
        selection: which images of the split are the real ones.
        features: dtype in which features are kept for KID, precision and recall.
        splits: of the Inception score.
        kid_subsets, kid_subset_size: of KID.
        neighbourhood: k of precision and recall.
        candidates: captions that an image chooses among for R-precision, its own included.
        folds: of R-precision.
        encoders: hash of R-precision's encoders, or OWN_ENCODERS.
        clip: hashes of the CLIP score's network and how images reach it, "" without it.
    """

    data: str
    captions: str
    split: str
    images: int
    real_images: int
    resolution: int
    detector: str
    detector_sha256: str
    preprocessing: str
    seed: int
    caption_choice: str
    caption_words: str
    truncation: str
    weights: str
    rounding: str
    crop: str
    selection: str
    features: str
    splits: int
    kid_subsets: int
    kid_subset_size: int
    neighbourhood: int
    candidates: int
    folds: int
    encoders: str
    clip: str

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return dataclasses.asdict(self)

    @property
    def hash(self) -> str:
        """Return 12 hexadecimal digits that name the protocol."""
        return sha256_of_json(self.as_dict())[:_HASH_DIGITS]

    @property
    def real_hash(self) -> str:
        """Return 12 digits that name the real side, so that protocols can share its sums."""
        settings = self.as_dict()
        return sha256_of_json({name: settings[name] for name in _REAL_SIDE})[:_HASH_DIGITS]
