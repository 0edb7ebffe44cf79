"""What one rank knows or fails at, told to all.

An error that stops one rank alone leaves the others waiting in their next collective call, so
errors are shared first and raised everywhere.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from t2i_hpc.common.errors import RunError
from t2i_hpc.engine.world import World


def share_text(world: World, text: str, source: int = 0) -> str:
    """Return on every rank the text that rank `source` gives; a collective call."""
    if world.control is None:
        return text
    content = torch.tensor(list(text.encode()), dtype=torch.uint8)
    length = torch.tensor([len(content)])
    dist.broadcast(length, source, group=world.control)
    if world.rank != source:
        content = torch.empty(int(length), dtype=torch.uint8)
    if int(length):
        dist.broadcast(content, source, group=world.control)
    return bytes(content.tolist()).decode()


def raise_together(world: World, error: Exception | None) -> None:
    """Raise on every rank if any rank has an error; a collective call.

    Raises:
        Exception: this rank's own error.
        RunError: what the first rank that has one says.
    """
    if world.control is not None:
        first = torch.tensor([world.size if error is None else world.rank])
        dist.all_reduce(first, dist.ReduceOp.MIN, group=world.control)
        if int(first) < world.size:
            text = share_text(world, str(error), int(first))
            error = error or RunError(text)
    if error is not None:
        raise error
