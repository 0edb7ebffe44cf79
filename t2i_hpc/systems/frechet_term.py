"""The Fréchet distance to the training images as a term of a generator's loss, as it is configured.

Post-training by a distance that generators are compared by: the published FD-loss does so with
finished one-step generators. A score in such features is then no measure any more, since the
training lowers it whether images improve or not (:mod:`t2i_hpc.evaluation.judges`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.config.one_stage_settings import OneStageConfig
from t2i_hpc.losses.frechet import FrechetMoments
from t2i_hpc.models.efficientnet import EfficientNetTaps
from t2i_hpc.systems.base import Term


class FrechetTerm:
    """The term, its frozen network, and its moments.

    Features are the means over each of EfficientNet-Lite0's four maps, 496 in all, of images as
    they are generated, without augmentation. Where the discriminator looks through the same
    network, at images of the same side, one forward serves both.

    Args:
        config: of the system, with a weight.
        discriminator: of the system.

    Attributes:
        frozen: what a checkpoint holds of it, by name.
        shared: whether the maps of the discriminator's forward are those of the term.
        due: whether this step has the term.
        real_images: training images whose moments are the target; at most all of them.
    """

    def __init__(self, config: OneStageConfig, discriminator: nn.Module) -> None:
        self.config, self.real_images = config, config.fd_real_images
        projection: Any = getattr(discriminator, "frozen", {}).get("projection")
        usual = projection.side if projection else max(EfficientNetTaps.side, config.resolution)
        self.side: int = config.fd_side or usual
        self.shared = (
            projection is not None and projection.side == self.side and not config.augmentation
        )
        self.network = EfficientNetTaps() if projection is None else projection.network
        self.moments = FrechetMoments(EfficientNetTaps.widths, config.fd_half_life)
        self.frozen: dict[str, nn.Module] = {"frechet": self.moments}
        if projection is None:
            self.frozen["frechet_network"] = self.network
        self.due = True

    def begin_step(self, images_seen: int) -> None:
        """Begin a step; `images_seen` before it."""
        self.due = images_seen >= self.config.fd_from_images
        if self.due:
            self.moments.begin_step()

    def features(self, images: Tensor) -> Tensor:
        """Return features (B, 496) of images (B, 3, R, R) in [-1, 1]."""
        return pooled(self.network.of_images(images, self.side))

    def term(self, images: Tensor, maps: list[Tensor] | None) -> Term:
        """Return the term of generated images (B, 3, R, R), or of their maps where there are."""
        features = self.features(images) if maps is None else pooled(maps)
        return Term(self.moments(features), self.config.fd_weight)


def pooled(maps: list[Tensor]) -> Tensor:
    """Return the means (B, ΣC) of maps (B, C, h, w) over their places, in float32 at least."""
    wide = torch.promote_types(maps[0].dtype, torch.float32)
    return torch.cat([one.mean((2, 3), dtype=wide) for one in maps], 1)
