"""What a score was measured with. Two scores may be compared only if their protocols agree.

Everything that moves a score without the generator having changed stands here; the hash of it
stands on every score, every part of an evaluation and in the folder's name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from t2i_hpc.common.files import sha256_of_json

CROP = "shorter side to the resolution by antialiased bilinear, centre square"
SELECTION = "evenly spaced over the split as stored"
ROUNDING = "clamped to [-1, 1], to the nearest of 256 levels, no compression"
_HASH_DIGITS = 12
_GENERATED_SIDE_ONLY = ("captions", "images", "seed", "rounding")


@dataclass(frozen=True)
class Protocol:
    """The settings of a comparison.

    Attributes:
        data: digest of the manifest of the real images.
        captions: digest of the manifest that the captions were drawn from.
        split: split of both.
        images: number of generated images N.
        real_images: number of real images.
        resolution: side of the compared images in px.
        detector: name of the feature network.
        detector_sha256: hash of its weights.
        preprocessing: how images reach it.
        seed: of noise and captions; image i depends on (seed, i) alone.
        crop: how real images are brought to the resolution.
        selection: which images of the split are the real ones.
        rounding: how generated values become 8-bit levels.
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
    crop: str = CROP
    selection: str = SELECTION
    rounding: str = ROUNDING

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return dataclasses.asdict(self)

    @property
    def hash(self) -> str:
        """Return 12 hexadecimal digits that name the protocol."""
        return sha256_of_json(self.as_dict())[:_HASH_DIGITS]

    @property
    def real_hash(self) -> str:
        """Return 12 digits that name the real side, so that protocols can share its moments."""
        settings = self.as_dict()
        for name in _GENERATED_SIDE_ONLY:
            del settings[name]
        return sha256_of_json(settings)[:_HASH_DIGITS]
