"""Reading a network's size off the shapes of its tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from t2i_hpc.common.errors import UserError

_MOST_BLOCKS = 12


class ConversionError(UserError):
    """A checkpoint that is not what it is said to be, or cannot be read or written."""


@dataclass(frozen=True)
class Shapes:
    """Shapes by the reference's tensor names, and the number of the network's blocks."""

    title: str
    shapes: Mapping[str, tuple[int, ...]]
    blocks: int

    def side(self, name: str, place: int) -> int:
        """Return one side of a tensor's shape.

        Raises:
            ConversionError: there is no such tensor, or it has fewer dimensions.
        """
        if name not in self.shapes:
            raise ConversionError(
                f"{self.title}: {name} is missing, of which the size is read; is this "
                "checkpoint whole, and of this system and part?"
            )
        shape = self.shapes[name]
        if place >= len(shape) or not shape[place]:
            raise ConversionError(
                f"{self.title}: {name} is {shape}, of which the size cannot be read; "
                "is this checkpoint of this system and part?"
            )
        return shape[place]

    def resolution(self, first_block_enlarges: bool) -> int:
        """Return the side of the images: 4 px, doubled by each block (or all but the first).

        Raises:
            ConversionError: there are no blocks, or only one.
        """
        if self.blocks < 2:
            raise ConversionError(
                f"{self.title}: block 1 is missing; is this checkpoint of this system and part?"
            )
        return 4 << (self.blocks if first_block_enlarges else self.blocks - 1)


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Return one more than the highest number that follows `prefix` in at least two names.

    A single name with such a number is a stray tensor, which is found to be unexpected later.
    """
    found = (re.match(re.escape(prefix) + r"(\d{1,2})\.", name) for name in names)
    tensors = Counter(int(match[1]) for match in found if match)
    return 1 + max(
        (n for n, count in tensors.items() if count > 1 and n < _MOST_BLOCKS), default=-1
    )
