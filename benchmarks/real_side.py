"""How far storing real images moves a distance: originals against what shards have of them.

    python -m benchmarks.real_side FOLDER [--images 1500] [--resolution 256] [--filter lanczos]

Every image of FOLDER (photographs, larger than 304 px) is brought to the resolution once as it is
and once from what a build stores of it. The distance between the two is 0 if storing does nothing.
Printed are Fréchet distances in the features of EfficientNet-Lite0, which is not FID.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from t2i_hpc.common.terminal import progress
from t2i_hpc.data.images import Pixels, decode, encode, resize_shorter
from t2i_hpc.data.split import stack
from t2i_hpc.evaluation.detectors.efficientnet_lite import EfficientNetLite0
from t2i_hpc.evaluation.fid import Moments, frechet_distance
from t2i_hpc.evaluation.image_sources import ImageFolder, ResizeRule, spread

_SIZE, _QUALITY, _BATCH = 304, 95, 16
_CPU = torch.device("cpu")


def _jpeg(image: Pixels, name: str) -> Pixels:
    return decode(encode(image, "jpeg", _QUALITY), name)


WAYS: dict[str, Callable[[Pixels], Pixels]] = {
    "original": lambda image: image,
    f"png, {_SIZE} px": lambda image: resize_shorter(image, _SIZE),
    f"jpeg {_QUALITY}, {_SIZE} px (the default)": lambda image: _jpeg(
        resize_shorter(image, _SIZE), "image"
    ),
}


def measure(
    folder: ImageFolder, count: int, resolution: int, resize_rule: ResizeRule
) -> dict[str, float]:
    """Return the distance of each way of storing from the originals."""
    detector = EfficientNetLite0(_CPU)
    moments = {way: Moments.empty(detector.identity.width) for way in WAYS}
    places = spread(range(count), count, folder.count)
    with progress("images", count, "images") as advance:
        for first in range(0, count, _BATCH):
            chosen = places[first : first + _BATCH]
            images = [(place, folder.image(place)) for place in chosen]
            for way, stored in WAYS.items():
                framed = [
                    resize_rule.resize(stored(image), place, resolution) for place, image in images
                ]
                moments[way].add_rows(detector.features(stack(framed)))
            advance(len(chosen))
    reference = moments.pop("original")
    return {way: frechet_distance(each, reference) for way, each in moments.items()}


def main() -> int:
    """Measure and print a line for each way of storing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--filter", default="lanczos", choices=("bilinear", "bicubic", "lanczos"))
    options = parser.parse_args()
    folder = ImageFolder(options.folder)
    count = min(options.images, folder.count)
    found = measure(folder, count, options.resolution, ResizeRule(filter=options.filter))
    for way, distance in found.items():
        sys.stdout.write(
            f"{way}: FD (EfficientNet-Lite0) {distance:.2f} from the originals "
            f"[N {count:,}, {options.resolution} px by {options.filter}]\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
