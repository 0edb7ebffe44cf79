"""How often the middle of a generated image has the color that its caption names.

    python -m benchmarks.color_words runs/flowers_projected-1a2b3c4d
    python -m benchmarks.color_words RUN --caption "a {} bird" --colors red blue

What a color word means is taken from photographs: training images whose captions name that color
at least half of the time and hardly another one. A picture names the word whose mean color is
nearest (sRGB, mean of the middle half of width and height). The first row says how often these
photographs themselves name their word so: no generator can be expected to be better. Chance is one
over the number of words.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from t2i_hpc import load_run
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.images import decode
from t2i_hpc.data.split import Split

COLORS = ("red", "yellow", "white", "purple")
CAPTION = "this flower has {} petals"
_NAMED, _OTHERS = 0.5, 0.2  # of an image's captions: that name its color, and that name another
Vector = npt.NDArray[np.float64]


def middle(image: npt.NDArray[np.uint8]) -> Vector:
    """Return the mean color of the middle half: uint8 (H, W, 3) to float64 (3,), 0 to 255."""
    down, across = image.shape[0] // 4, image.shape[1] // 4
    mean: Vector = image[down:-down, across:-across].mean((0, 1), dtype=np.float64)
    return mean


def color_of(captions: Sequence[str], colors: Sequence[str]) -> int | None:
    """Return which color the captions of one image agree on; None: none, or several."""
    words = (set(re.findall(r"[a-z]+", caption.lower())) for caption in captions)
    named = Counter(color for found in words for color in colors if color in found)
    (color, often), *others = named.most_common() or [("", 0)]
    if often < _NAMED * len(captions) or sum(n for _, n in others) > _OTHERS * len(captions):
        return None
    return colors.index(color)


def photographs(split: Split, colors: Sequence[str]) -> tuple[Vector, npt.NDArray[np.int64]]:
    """Return the middles of images of one color, float64 (N, 3), and their colors, int64 (N,)."""
    middles, named = [], []
    for sample in map(split.sample, range(split.count)):
        color = color_of(sample.captions, colors)
        if color is not None:
            middles.append(middle(sample.upright(decode(sample.image, sample.key))))
            named.append(color)
    return np.array(middles), np.array(named)


def shares(middles: Vector, named: npt.NDArray[np.int64], means: Vector) -> list[float]:
    """Return for each color how many of its images have it nearest, from 0 to 1.

    Args:
        middles: float64 (N, 3) of the images.
        named: int64 (N,), each image's color.
        means: float64 (colors, 3).
    """
    nearest = ((middles[:, None] - means) ** 2).sum(-1).argmin(1)
    return [float((nearest[named == color] == color).mean()) for color in range(len(means))]


def row(name: str, cells: Iterable[object]) -> str:
    """Return a line of the table."""
    return f"{name:<24}" + "".join(f"{cell:>10}" for cell in cells) + "\n"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="run directory, or an exported folder")
    parser.add_argument("--checkpoint", default="latest", help="as generate takes it")
    parser.add_argument("--data", default="", help="the split's folder; empty: that of the run")
    parser.add_argument("--split", default="train", help="whose images say what a word means")
    parser.add_argument("--caption", default=CAPTION, help="{} is the color's place")
    parser.add_argument("--colors", nargs="+", default=list(COLORS), help="at least two words")
    parser.add_argument("--images", type=int, default=64, help="of each color")
    given = parser.parse_args()
    run = load_run(given.run, given.checkpoint, data=given.data)
    data = DataConfig(path=given.data or run.config.data.path)
    middles, named = photographs(Split.open(data, given.split), given.colors)
    missing = [color for i, color in enumerate(given.colors) if not (named == i).any()]
    if missing:
        raise SystemExit(f"no image of {data.path} has captions that agree on {missing}: drop them")
    means = np.array([middles[named == i].mean(0) for i in range(len(given.colors))])
    captions = [given.caption.format(color) for color in given.colors]
    made = run.generate(captions, seed=0, images_per_caption=given.images).images
    pictures = np.array([middle(image) for image in made.permute(0, 2, 3, 1).numpy()])
    of_word = np.repeat(np.arange(len(captions)), given.images)
    sys.stdout.write(row("names its color", [*given.colors, "mean"]))
    for name, values in (
        (f"{len(named):,} photographs", shares(middles, named, means)),
        (f"{len(pictures):,} generated", shares(pictures, of_word, means)),
    ):
        sys.stdout.write(row(name, (f"{v:.0%}" for v in [*values, sum(values) / len(values)])))


if __name__ == "__main__":
    main()
