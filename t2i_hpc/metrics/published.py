"""Results that papers and read-me files state; none of them was reproduced here.

Rows of AttnGAN (Tables 2 and 3), DM-GAN's read-me, DF-GAN's read-me, SSA-GAN (Tables 1 and 2)
and the hybrids' paper, not all of each. FIDs of this literature come from two networks:
torchvision's with mis-scaled images ("literature") and TensorFlow's of 2015 ("tensorflow"); where
a table mixes them or does not say which, the row is "unstated". They must not be put in one
column. AttnGAN and DM-GAN score birds by a network that was fine-tuned on them: nobody has it, so
nothing here can be compared with those Inception scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One stated number.

    Attributes:
        system: what was trained, as the source calls it.
        data: cub or coco.
        metric: FID, Inception score or R-precision (a share of 1).
        value, std: as stated; R-precision was stated in per cent.
        network: literature, tensorflow or unstated; of an Inception score, the fine-tuned
            network of birds or ImageNet's.
        source: where it is stated.
    """

    system: str
    data: str
    metric: str
    value: float
    std: float | None
    network: str
    source: str


@dataclass(frozen=True)
class Family:
    """Which published numbers stand beside a protocol's.

    Attributes:
        network: of their FIDs.
        distance: what a FID by that network is called here.
        data: cub or coco; empty: the scored run's own.
    """

    network: str
    distance: str
    data: str = ""


FAMILIES = {
    "literature_coco": Family("literature", "FID (literature)", "coco"),
    "literature_cub": Family("literature", "FID (literature)", "cub"),
    "ssagan_code": Family("tensorflow", "FID"),
}

_ATTNGAN, _DMGAN, _DFGAN = "AttnGAN, Tables 2 and 3", "DM-GAN's read-me", "DF-GAN's read-me"
_SSAGAN_1, _SSAGAN_2 = "SSA-GAN, Table 1", "SSA-GAN, Table 2"
_LITERATURE, _TENSORFLOW, _UNSTATED = "literature", "tensorflow", "unstated"
_BIRDS, _IMAGENET = "fine-tuned on birds", "ImageNet's of 2015"

_FIDS = (
    ("AttnGAN", "cub", 23.98, _LITERATURE, _DMGAN),
    ("AttnGAN", "cub", 14.01, _TENSORFLOW, _DMGAN),
    ("AttnGAN", "coco", 35.49, _LITERATURE, _DMGAN),
    ("AttnGAN", "coco", 29.53, _TENSORFLOW, _DMGAN),
    ("DM-GAN (paper)", "cub", 16.09, _LITERATURE, _DMGAN),
    ("DM-GAN (paper)", "coco", 32.64, _LITERATURE, _DMGAN),
    ("DM-GAN (released)", "cub", 15.34, _LITERATURE, _DMGAN),
    ("DM-GAN (released)", "cub", 11.91, _TENSORFLOW, _DMGAN),
    ("DM-GAN (released)", "coco", 26.55, _LITERATURE, _DMGAN),
    ("DM-GAN (released)", "coco", 24.24, _TENSORFLOW, _DMGAN),
    ("StackGAN++", "cub", 15.30, _UNSTATED, _SSAGAN_1),
    ("StackGAN++", "coco", 81.59, _UNSTATED, _SSAGAN_1),
    ("DF-GAN (first version)", "cub", 19.24, _UNSTATED, _SSAGAN_1),
    ("DF-GAN (first version)", "coco", 28.92, _UNSTATED, _SSAGAN_1),
    ("DF-GAN (CVPR 2022)", "cub", 14.81, _LITERATURE, _DFGAN),
    ("DF-GAN (CVPR 2022)", "coco", 19.32, _LITERATURE, _DFGAN),
    ("DF-GAN (released)", "cub", 12.10, _LITERATURE, _DFGAN),
    ("DF-GAN (released)", "coco", 15.41, _LITERATURE, _DFGAN),
    ("SSA-GAN", "cub", 15.61, _UNSTATED, _SSAGAN_1),
    ("SSA-GAN", "coco", 19.37, _UNSTATED, _SSAGAN_1),
    ("SSA-GAN without DAMSM", "cub", 18.54, _UNSTATED, _SSAGAN_2),
    ("SSA-GAN, text encoder fine-tuned", "cub", 16.58, _UNSTATED, _SSAGAN_2),
    ("AttnDM-GAN", "cub", 19.78, _UNSTATED, "the hybrids' paper"),
    ("DMAttn-GAN", "cub", 17.04, _UNSTATED, "the hybrids' paper"),
)
_INCEPTION_SCORES = (
    ("GAN-INT-CLS", "cub", 2.88, 0.04, _ATTNGAN),
    ("GAN-INT-CLS", "coco", 7.88, 0.07, _ATTNGAN),
    ("StackGAN", "cub", 3.70, 0.04, _ATTNGAN),
    ("StackGAN", "coco", 8.45, 0.03, _ATTNGAN),
    ("AttnGAN", "cub", 4.36, 0.03, _ATTNGAN),
    ("AttnGAN", "coco", 25.89, 0.47, _ATTNGAN),
    ("DM-GAN (paper)", "cub", 4.75, 0.07, _DMGAN),
    ("DM-GAN (paper)", "coco", 30.49, 0.57, _DMGAN),
    ("DM-GAN (released)", "cub", 4.71, 0.06, _DMGAN),
    ("DM-GAN (released)", "coco", 32.43, 0.58, _DMGAN),
    ("StackGAN++", "cub", 4.04, 0.06, _SSAGAN_1),
    ("ControlGAN", "cub", 4.58, 0.09, _SSAGAN_1),
    ("SD-GAN", "cub", 4.67, 0.09, _SSAGAN_1),
    ("DF-GAN (first version)", "cub", 4.86, 0.04, _SSAGAN_1),
    ("SSA-GAN without DAMSM", "cub", 4.97, 0.09, _SSAGAN_2),
    ("SSA-GAN", "cub", 5.07, 0.04, _SSAGAN_2),
    ("SSA-GAN, text encoder fine-tuned", "cub", 5.17, 0.08, _SSAGAN_2),
)
_R_PRECISIONS = (
    ("AttnGAN", "cub", 67.82, 4.43, _ATTNGAN),
    ("AttnGAN", "coco", 85.47, 3.69, _ATTNGAN),
    ("DM-GAN (paper)", "cub", 72.31, 0.91, _DMGAN),
    ("DM-GAN (paper)", "coco", 88.56, 0.28, _DMGAN),
    ("DM-GAN (released)", "cub", 76.58, 0.53, _DMGAN),
    ("DM-GAN (released)", "coco", 92.23, 0.37, _DMGAN),
)


def published_scores() -> Iterator[Published]:
    """Give all stated numbers."""
    for system, data, value, network, source in _FIDS:
        yield Published(system, data, "FID", value, None, network, source)
    for system, data, value, std, source in _INCEPTION_SCORES:
        birds = _BIRDS if source in (_ATTNGAN, _DMGAN) else _UNSTATED
        network = birds if data == "cub" else _IMAGENET
        yield Published(system, data, "Inception score", value, std, network, source)
    for system, data, value, std, source in _R_PRECISIONS:
        row = Published(system, data, "R-precision", value / 100, std / 100, "DAMSM", source)
        yield row


def published_beside(metric: str, protocol_name: str, data: str) -> list[Published]:
    """Return what papers state for a metric measured by a protocol of this name, best first.

    Numbers of another network are left out; those whose network is not stated are kept, and
    say so.

    Args:
        metric: its name, as a score has it.
        protocol_name: the protocol's.
        data: name of the data that the scored run was trained on.
    """
    family = FAMILIES.get(protocol_name)
    if family is None:
        return []
    if metric.startswith("FID") and metric != family.distance:
        return []
    kind = "FID" if metric == family.distance else metric
    others = {_LITERATURE, _TENSORFLOW, _BIRDS} - {family.network}
    wanted = (kind, family.data or data)
    rows = [
        row
        for row in published_scores()
        if (row.metric, row.data) == wanted and row.network not in others
    ]
    return sorted(rows, key=lambda row: row.value if kind == "FID" else -row.value)
