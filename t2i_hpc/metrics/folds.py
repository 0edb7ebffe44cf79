"""Which group an image belongs to: seeded, equally large groups of all images of a side.

Splits of the Inception score and folds of R-precision are such groups. The membership of image
i is a function of (seed, number of images, i), never of the part that it was drawn in, so the
sums of each group add up over any number of parts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Groups = npt.NDArray[np.int64]


def groups_of(images: int, groups: int, seed: int) -> Groups:
    """Return the group of each image, int64 (images,): 0 … `groups` − 1.

    The images are shuffled and cut into runs that differ in length by at most one. NumPy's old
    generator is frozen by its makers, and torch-fidelity shuffles with it: the same seed gives
    the same splits there and here.

    Args:
        images: number of images.
        groups: number of groups, 1 ≤ groups ≤ images.
        seed: 0 ≤ seed < 2³².
    """
    order = np.random.RandomState(seed).permutation(images)
    bounds = [group * images // groups for group in range(groups + 1)]
    member = np.empty(images, dtype=np.int64)
    for group in range(groups):
        member[order[bounds[group] : bounds[group + 1]]] = group
    return member
