"""Shuffling without a list: a keyed permutation of 0 … n-1 that is computed, not stored.

A Feistel network permutes the numbers below a power of four; numbers that fall outside
0 … n-1 are sent through it again until they are inside (cycle-walking), which leaves a
permutation of exactly n numbers (Black and Rogaway, "Ciphers with arbitrary finite domains",
2002). It takes no memory, works for any n below 2⁵³ and gives the same order on every machine
and with every version of NumPy.

Random numbers of many positions at once: a hash of (seed, position), nothing else.

A generator object a sample costs more than reading the sample; hashing a batch of positions
costs nothing to speak of and gives the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_STEPS = np.array([[number * _GOLDEN & _MASK] for number in range(1, _ROUNDS + 1)], np.uint64)
_ONE = np.uint64(1)


def mix(words: Words) -> Words:
    """Scramble 64-bit words: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    mixed: Words = words ^ (words >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def key_of(*numbers: int | Words) -> Words:
    """Return the 64-bit key of a tuple of numbers, or of many tuples: an array of length ≥ 1."""
    key = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        word = np.asarray(number & _MASK if isinstance(number, int) else number, dtype=np.uint64)
        key = mix((key ^ word) + np.uint64(_GOLDEN))
    return key


def permute(values: Words, sizes: Words, keys: Words) -> Words:
    """Return where each value goes in the permutation of 0 … size-1 with its key.

    Args:
        values: uint64 (n,), each below its size.
        sizes: uint64 (n,), 1 ≤ size < 2⁵³.
        keys: uint64 (n,), one a permutation.
    """
    bits = np.frexp((sizes - _ONE).astype(np.float64))[1]  # bit length of size - 1
    halves = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    round_keys = mix(keys + _STEPS)  # once: a value may pass the network several times
    result: Words = values.copy()
    outside = np.flatnonzero(sizes > _ONE)
    while len(outside):
        result[outside] = _feistel(result[outside], halves[outside], round_keys[:, outside])
        outside = outside[result[outside] >= sizes[outside]]
    return result


def shuffled(count: int, keys: Words) -> npt.NDArray[np.int64]:
    """Return 0 … count-1 in an order for each key (K,), every one equally likely: (K, count).

    They are sorted by random numbers, so it takes memory, unlike :func:`permute`; whose orders of
    fewer than 20 are not quite equally likely.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return np.argsort(mix(keys[:, None] + steps), axis=1, kind="stable")


def _feistel(values: Words, halves: Words, round_keys: Words) -> Words:
    mask = (_ONE << halves) - _ONE
    left, right = values >> halves, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (mix(right ^ round_key) & mask)
    joined: Words = (left << halves) | right
    return joined


_SAMPLES = 4  # what the key is for; t2i_hpc.data.sampler has 1 to 3
_GOLDEN_DRAWS = np.uint64(0x9E3779B97F4A7C15)
_TO_UNIT = 2.0**-53


def uniform(seed: int, positions: Sequence[int], count: int) -> npt.NDArray[np.float64]:
    """Return `count` numbers from [0, 1) for each position ≥ 0: float64 (positions, count)."""
    keys = key_of(_SAMPLES, seed, np.asarray(positions, dtype=np.int64).astype(np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN_DRAWS
    words = mix(keys[:, None] + steps)
    numbers: npt.NDArray[np.float64] = (words >> np.uint64(11)) * _TO_UNIT
    return numbers
