"""How a part of a reference implementation is described, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from t2i_hpc.convert.names import Pairs
from t2i_hpc.convert.shapes import Shapes


@dataclass(frozen=True)
class Layout:
    """One way in which the reference names a part's tensors.

    Attributes:
        network: our class.
        build: makes it from the shapes of the reference's tensors.
        pairs: (their name, our name) for a number of blocks, in their order.
        mark: one of their tensors that tells this layout from the part's other ones.
        blocks: what stands before a block's number in their names.
        dead: end of the names of 1×1 convolutions that every block of theirs carries, and
            ours only where it is used.
    """

    network: type[nn.Module]
    build: Callable[[Shapes], nn.Module]
    pairs: Callable[[int], Pairs]
    mark: str
    blocks: str = "block"
    dead: str = ""


@dataclass(frozen=True)
class Part:
    """A part's layouts, and its name inside checkpoints that hold several parts."""

    layouts: tuple[Layout, ...]
    nested: str = ""
