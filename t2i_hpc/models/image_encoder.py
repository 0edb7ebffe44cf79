"""DAMSM's image encoders: frozen ImageNet trunks with two trained projections.

An encoder maps images (B, 3, H, W) in [-1, 1] to regions (B, D, r, r) and a code (B, D) in
the space of the text encoder's words and sentences (AttnGAN §3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.models.efficientnet import EfficientNetLite0Features
from t2i_hpc.models.global_batch import make_global
from t2i_hpc.models.recomputation import mark_recomputable

_SIDE = "trunk.side"  # in the weights of an encoder


class ImageFeatures(NamedTuple):
    """Regions (B, D, r, r) and the code of the whole image (B, D)."""

    regions: Tensor
    code: Tensor


class ImageEncoder(nn.Module):
    """A frozen trunk with projections of its local and its pooled features.

    Args:
        trunk: maps images to (local (B, C, r, r), pooled (B, P)); its weights stay as they are.
        local_width, pooled_width: C and P.
        width: D, length of a text vector.
        batch_statistics: whether the trunk's batch norms follow the encoder into training mode,
            where they normalize by the batch and move their running statistics (released
            fine-tuning, and the pre-training that made the published encoders).
    """

    def __init__(
        self,
        trunk: nn.Module,
        local_width: int,
        pooled_width: int,
        width: int = 256,
        *,
        batch_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.batch_statistics = batch_statistics
        self.trunk = trunk.requires_grad_(False)
        if batch_statistics:
            make_global(self.trunk)
        self.heads = nn.ModuleDict(
            {
                "regions": nn.Conv2d(local_width, width, 1, bias=False),
                "code": nn.Linear(pooled_width, width),
            }
        )
        for head in self.heads.values():
            nn.init.uniform_(head.get_parameter("weight"), -0.1, 0.1)
        self.train()  # of the trunk whatever batch_statistics says

    def train(self, mode: bool = True) -> ImageEncoder:
        """Keep the trunk in evaluation mode unless it is to use batch statistics."""
        super().train(mode)
        self.trunk.train(mode and self.batch_statistics)
        return self

    def forward(self, images: Tensor) -> ImageFeatures:
        """Encode images in [-1, 1] of any size."""
        local, pooled = self.trunk(images)
        return ImageFeatures(self.heads["regions"](local), self.heads["code"](pooled))


class InceptionTrunk(nn.Module):
    """torchvision's Inception-v3 at 299 px: Mixed_6e (768×17×17) and the pool (2048)."""

    local_width, pooled_width = 768, 2048

    def __init__(self, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        from torchvision.models import inception_v3

        network = inception_v3(weights=None, aux_logits=False, init_weights=False)
        names = [
            name
            for name, _ in network.named_children()
            if name not in {"AuxLogits", "avgpool", "dropout", "fc"}
        ]
        cut = names.index("Mixed_6e") + 1
        self.early = nn.Sequential(*(getattr(network, name) for name in names[:cut]))
        self.late = nn.Sequential(*(getattr(network, name) for name in names[cut:]))
        mark_recomputable([*self.early, *self.late])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return local and pooled features; no ImageNet normalization, as AttnGAN."""
        resized = resize(images, 299, self.align_corners)
        local = self.early(resized)
        return local, self.late(local).mean((2, 3))


class EfficientNetLite0Trunk(nn.Module):
    """EfficientNet-Lite0 with packaged ImageNet weights: at 224 px 112×14×14 and 1280.

    Args:
        align_corners: of the resize.
        side: what images are resized to, a multiple of 16; another than 224 is part of the
            weights, whose heads are trained for it.
    """

    local_width, pooled_width = 112, 1280

    def __init__(
        self, align_corners: bool = False, side: int = EfficientNetLite0Features.side
    ) -> None:
        super().__init__()
        self.align_corners, self._side = align_corners, side
        self.features = EfficientNetLite0Features()
        if side != EfficientNetLite0Features.side:
            self.register_buffer("side", torch.tensor(side))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return local and pooled features."""
        resized = resize(images, self._side, self.align_corners)
        # From [-1, 1] by way of 0..255 to what the network was trained on.
        local, pooled = self.features((resized * 127.5 + 0.5) / 128)
        return local, pooled


TRUNKS: dict[str, type[InceptionTrunk] | type[EfficientNetLite0Trunk]] = {
    "inception_v3": InceptionTrunk,
    "efficientnet_lite0": EfficientNetLite0Trunk,
}


def resize(images: Tensor, side: int, align_corners: bool) -> Tensor:
    """Resize (B, 3, H, W) bilinearly to (B, 3, side, side), without smoothing."""
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=align_corners)


def build_image_encoder(
    name: str,
    width: int,
    *,
    align_corners: bool = False,
    batch_statistics: bool = False,
    side: int | None = None,
) -> ImageEncoder:
    """Build an image encoder by its configured name.

    Args:
        name: a key of ``TRUNKS``.
        width: D, length of a text vector.
        align_corners: of the resize to the trunk's size; false in SSA-GAN and DF-GAN, true in
            DM-GAN.
        batch_statistics: see :class:`ImageEncoder`.
        side: that EfficientNet-Lite0 sees; None: its own.

    Raises:
        ValueError: batch statistics of a trunk that has no batch norms.
    """
    trunk = TRUNKS[name](align_corners, **({} if side is None else {"side": side}))
    if batch_statistics and not any(isinstance(m, nn.BatchNorm2d) for m in trunk.modules()):
        raise ValueError(f"{name} has no batch norms: they are folded into its convolutions")
    return ImageEncoder(
        trunk, trunk.local_width, trunk.pooled_width, width, batch_statistics=batch_statistics
    )


def side_of(weights: Mapping[str, Tensor]) -> int | None:
    """Return the side that an encoder's weights were trained at; None: its network's own."""
    return int(weights[_SIDE]) if _SIDE in weights else None
