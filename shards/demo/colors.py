"""The colors a picture is made of, by name: integer arithmetic, so that it never varies.

A pixel's name follows from its brightest and darkest channel and its hue, as people name
colors; the names with the largest shares of the opaque area describe the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

NAMES = (
    "black", "grey", "white", "red", "orange", "yellow", "green", "light blue", "blue",
    "purple", "pink", "brown",
)  # fmt: skip
_BLACK, _GREY, _WHITE, _RED, _ORANGE, _YELLOW, _GREEN, _LIGHT_BLUE = range(8)
_BLUE, _PURPLE, _PINK, _BROWN = range(8, 12)
# Upper ends of the hues in degrees, each with its name; beyond the last it is red again.
_HUES = (
    (9, _RED), (33, _ORANGE), (66, _YELLOW), (168, _GREEN), (208, _LIGHT_BLUE),
    (250, _BLUE), (290, _PURPLE), (344, _PINK), (360, _RED),
)  # fmt: skip
_LEAST_SHARE = 10  # a color of less than one in so many pixels is not named

Pixels = npt.NDArray[np.uint8]


def dominant_colors(pixels: Pixels, most: int = 2) -> list[str]:
    """Name the colors with the largest shares, largest first; at least one.

    Args:
        pixels: uint8 (H, W, 4), red, green, blue and opacity; transparent pixels do not count.
        most: how many names at most.
    """
    opaque = pixels[pixels[..., 3] >= 128][:, :3]
    counts = np.bincount(_name_indices(opaque), minlength=len(NAMES))
    order = sorted(range(len(NAMES)), key=lambda index: (-counts[index], index))[:most]
    least = len(opaque) // _LEAST_SHARE
    kept = [NAMES[index] for index in order if counts[index] > least]
    return kept or [NAMES[order[0]]]


def join(words: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _name_indices(colors: Pixels) -> npt.NDArray[np.int64]:
    """Return the index into NAMES of each row of (n, 3)."""
    rgb = colors.astype(np.int64)
    value, chroma = rgb.max(axis=1), rgb.max(axis=1) - rgb.min(axis=1)
    hue = _hue(rgb, value, chroma)
    names = np.zeros(len(rgb), dtype=np.int64)
    for end, name in reversed(_HUES):
        names[hue < end] = name
    warm = (names == _RED) | (names == _ORANGE) | (names == _YELLOW)
    names[warm & (value < 170) & (chroma * 100 < value * 80)] = _BROWN
    names[(names == _ORANGE) & (value < 190)] = _BROWN
    names[(names == _PINK) & (value < 170) & (hue >= 325) & (chroma * 100 < value * 60)] = _BROWN
    pale = chroma * 100 < value * 26
    names[pale] = np.select([value[pale] >= 205, value[pale] >= 105], [_WHITE, _GREY], _BLACK)
    names[(value < 60) | ((value < 100) & (chroma * 100 < value * 40))] = _BLACK
    return names


def _hue(
    rgb: npt.NDArray[np.int64], value: npt.NDArray[np.int64], chroma: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the hue in whole degrees, 0 ≤ hue < 360; 0 where there is none."""
    red, green, blue = rgb.T
    span = np.maximum(chroma, 1)
    angle: npt.NDArray[np.int64] = np.select(
        [value == red, value == green],
        [60 * (green - blue) // span, 120 + 60 * (blue - red) // span],
        240 + 60 * (red - green) // span,
    )
    return np.mod(angle, 360)
