"""Results that papers and read-me files state; none of them was reproduced here.

Rows of AttnGAN (Tables 2 and 3), DM-GAN's read-me, DF-GAN's read-me, SSA-GAN (Tables 1 and 2), the
hybrids' paper, RAT-GAN's and GALIP's, not all of each. Each row says by which network and of how
many images it is, as far as its source or its released code tells. A number stands beside a score
only where both agree with the score's protocol, and that was not modified.

FIDs of this literature come from two networks: torchvision's with mis-scaled images ("literature")
and TensorFlow's of 2015 ("tensorflow"); where a table quotes others without saying which, the row
is "unstated". DF-GAN's are of the former network, but of noise that is cut off and scaled, of
values that are not rounded and of another number of images; GALIP's are of 224 px and not rounded
either. AttnGAN, DM-GAN and those before score birds by a network that was fine-tuned on them:
nobody has it, so nothing here can be compared with those Inception scores. Those of COCO are by
ImageNet's network, DM-GAN's of images that were scaled to 299 px before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One stated number.

    Attributes:
        system: what was trained, as the source calls it.
        data: cub or coco.
        metric: FID, Inception score or R-precision (a share of 1).
        value, std: as stated; R-precision was stated in per cent.
        network: what measured it, one of the names below.
        source: where it is stated.
        images: number of generated images; None where it is not known, or not of plain noise.
    """

    system: str
    data: str
    metric: str
    value: float
    std: float | None
    network: str
    source: str
    images: int | None


@dataclass(frozen=True)
class Family:
    """Which published numbers stand beside a protocol's.

    Attributes:
        kinds: the stated metric and its network, by the metric's name here.
        data: cub or coco; empty: the scored run's own.
    """

    kinds: Mapping[str, tuple[str, str]]
    data: str = ""


_LITERATURE, _TENSORFLOW, _UNSTATED = "literature", "tensorflow", "unstated"
_BIRDS, _DAMSM = "fine-tuned on birds", "DAMSM"
_IMAGENET, _IMAGENET_128, _IMAGENET_299 = (
    f"ImageNet's of 2015{side}" for side in ("", ", 128 px", ", 299 px")
)
_LITERATURE_KINDS = {
    "FID (literature)": ("FID", _LITERATURE),
    "R-precision": ("R-precision", _DAMSM),
}
FAMILIES = {
    "literature_coco": Family(_LITERATURE_KINDS, "coco"),
    "literature_cub": Family(_LITERATURE_KINDS, "cub"),
    "literature_coco_is": Family(
        {"Inception score (299 px)": ("Inception score", _IMAGENET_299)}, "coco"
    ),
    "ssagan_paper": Family(
        {
            "FID": ("FID", _TENSORFLOW),
            "Inception score (128 px)": ("Inception score", _IMAGENET_128),
        }
    ),
}

_ATTNGAN, _DMGAN, _DFGAN = "AttnGAN, Tables 2 and 3", "DM-GAN's read-me", "DF-GAN's read-me"
_SSAGAN_1, _SSAGAN_2 = "SSA-GAN, Table 1", "SSA-GAN, Table 2"
_HYBRIDS, _RATGAN, _GALIP = "the hybrids' paper", "RAT-GAN's paper", "GALIP's paper and read-me"
# Sources that say, by text or released code, of how many images of plain noise their numbers are.
_IMAGES = {_ATTNGAN: 30_000, _DMGAN: 30_000}
_SSAGAN_IMAGES = 30_000  # the paper's own systems; it quotes the others

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
    ("SSA-GAN", "cub", 15.61, _TENSORFLOW, _SSAGAN_1),
    ("SSA-GAN", "coco", 19.37, _TENSORFLOW, _SSAGAN_1),
    ("SSA-GAN without DAMSM", "cub", 18.54, _TENSORFLOW, _SSAGAN_2),
    ("SSA-GAN, text encoder fine-tuned", "cub", 16.58, _TENSORFLOW, _SSAGAN_2),
    ("AttnDM-GAN", "cub", 19.78, _UNSTATED, _HYBRIDS),
    ("DMAttn-GAN", "cub", 17.04, _UNSTATED, _HYBRIDS),
    ("RAT-GAN", "cub", 13.91, _UNSTATED, _RATGAN),
    ("RAT-GAN", "coco", 14.60, _UNSTATED, _RATGAN),
    ("GALIP (paper)", "cub", 10.08, _LITERATURE, _GALIP),
    ("GALIP (paper)", "coco", 5.85, _LITERATURE, _GALIP),
    ("GALIP (released)", "coco", 5.01, _LITERATURE, _GALIP),
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
        yield Published(system, data, "FID", value, None, network, source, _count(system, source))
    for system, data, value, std, source in _INCEPTION_SCORES:
        network = _score_network(system, data, source)
        count = _count(system, source)
        yield Published(system, data, "Inception score", value, std, network, source, count)
    for system, data, value, std, source in _R_PRECISIONS:
        count = _count(system, source)
        yield Published(system, data, "R-precision", value / 100, std / 100, _DAMSM, source, count)


def published_beside(metric: str, protocol_name: str, data: str, images: int) -> list[Published]:
    """Return what papers state for a metric measured by a protocol of this name, best first.

    Numbers of another network, another data set or another number of images are left out.

    Args:
        metric: its name, as a score has it.
        protocol_name: the protocol's; of a modified one there is nothing to compare with.
        data: name of the data that the scored run was trained on.
        images: number of generated images.
    """
    family = FAMILIES.get(protocol_name)
    if family is None or metric not in family.kinds:
        return []
    wanted = (*family.kinds[metric], family.data or data, images)
    rows = [
        row
        for row in published_scores()
        if (row.metric, row.network, row.data, row.images) == wanted
    ]
    return sorted(rows, key=lambda row: row.value if row.metric == "FID" else -row.value)


def _count(system: str, source: str) -> int | None:
    own = source in (_SSAGAN_1, _SSAGAN_2) and system.startswith("SSA-GAN")
    return _SSAGAN_IMAGES if own else _IMAGES.get(source)


def _score_network(system: str, data: str, source: str) -> str:
    """Return what network an Inception score is by."""
    if source == _DMGAN and data == "coco" and system.startswith("DM-GAN"):
        return _IMAGENET_299
    if data == "coco":
        return _IMAGENET
    if source in (_ATTNGAN, _DMGAN):
        return _BIRDS
    return _IMAGENET_128 if system.startswith("SSA-GAN") else _UNSTATED
