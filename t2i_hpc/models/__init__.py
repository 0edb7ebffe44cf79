"""Networks. What every generator returns are :class:`GeneratedImages`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class GeneratedImages:
    """What a generator makes of noise and captions.

    Attributes:
        images: float (B, 3, h, w) in [-1, 1], smallest resolution first; the last is the result.
        masks: float (B, 1, h, w) in [0, 1], first block first; empty where there are none.
        attention: float (B, T, h, w), one map a word; empty where there is none.
    """

    images: Sequence[Tensor]
    masks: Sequence[Tensor] = field(default_factory=list)
    attention: Sequence[Tensor] = field(default_factory=list)
