"""Says at the start of a training by DAMSM that all images are of one class."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch
import torch.distributed as dist

from t2i_hpc.common.step import Batch
from t2i_hpc.engine.world import World

Batches = Callable[[int], Iterator[Batch]]


def telling_of_one_class(batches: Batches, world: World, say: Callable[[str], None]) -> Batches:
    """Return the same batches; where the first of a session is of one class, that is said.

    DAMSM hides captions of the same class from each other, so its losses are then those of a
    single choice: 0, whatever the encoders do.

    Args:
        batches: of this rank, from a number of samples on.
        world: its ranks look together.
        say: tells people a line.
    """

    def told(images_seen: int) -> Generator[Batch, None, None]:
        rest = batches(images_seen)
        try:
            yield from _told(rest, world, say)
        finally:  # its loader processes end with it
            if isinstance(rest, Generator):
                rest.close()

    return told


def _told(batches: Iterator[Batch], world: World, say: Callable[[str], None]) -> Iterator[Batch]:
    first = next(batches, None)
    if first is None:
        return
    if (only := _only_class(first, world)) is not None:
        say(
            f"all {len(first.images) * world.size} images of the first batch are of class {only}: "
            "DAMSM compares an image with captions of other classes only, so there is nothing to "
            "learn where all images have one class; leave the class out of the metadata to give "
            "each image one of its own"
        )
    yield first
    yield from batches


def _only_class(batch: Batch, world: World) -> int | None:
    """Return the class of all images of a global batch, None where there are several."""
    classes = batch.classes.cpu()
    ends = torch.stack([classes.max(), -classes.min()])
    if world.control is not None:
        dist.all_reduce(ends, dist.ReduceOp.MAX, group=world.control)
    largest, smallest = int(ends[0]), -int(ends[1])
    alone = len(batch.images) * world.size == 1
    return largest if largest == smallest and not alone else None
