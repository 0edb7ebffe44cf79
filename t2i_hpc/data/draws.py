"""Random numbers of many positions at once: a hash of (seed, position), nothing else.

A generator object a sample costs more than reading the sample; hashing a batch of positions
costs nothing to speak of and gives the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from t2i_hpc.data.permutation import key_of, mix

_SAMPLES = 4  # what the key is for; t2i_hpc.data.plan has 1 to 3
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TO_UNIT = 2.0**-53


def uniform(seed: int, positions: Sequence[int], count: int) -> npt.NDArray[np.float64]:
    """Return `count` numbers from [0, 1) for each position ≥ 0: float64 (positions, count)."""
    keys = key_of(_SAMPLES, seed, np.asarray(positions, dtype=np.int64).astype(np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    words = mix(keys[:, None] + steps)
    numbers: npt.NDArray[np.float64] = (words >> np.uint64(11)) * _TO_UNIT
    return numbers
