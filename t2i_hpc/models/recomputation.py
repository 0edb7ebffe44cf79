"""Less memory for more arithmetic: what is made again instead of being remembered.

A whole block (:func:`recompute`), which must move running statistics once: the second time it runs
inside :func:`statistics_kept`. Or a single map that costs one pass over memory (:func:`remade`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Let batch norms inside `network` normalize as they do, and leave their buffers alone."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not track_running_stats=False: torch's checkpoint wants as many saved tensors as before.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def recomputable_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network that may run twice: those with ``recomputable = True``.

    A block is a function of its inputs and weights: it draws no random numbers, keeps nothing
    beside running statistics, and its gradient is not differentiated again.
    """
    return [module for module in network.modules() if getattr(module, "recomputable", False)]


def mark_recomputable(blocks: Iterable[nn.Module]) -> None:
    """Mark blocks of other packages' classes."""
    for block in blocks:
        block.recomputable = True  # type: ignore[assignment]


def recompute(network: nn.Module) -> None:
    """Let a network's blocks keep their inputs alone and run again within the backward pass.

    Values and gradients are the same bits. On several ranks a block's collectives run again too,
    in the order of the backward pass, which is the same on all.
    """
    for block in recomputable_blocks(network):
        block.forward = partial(_run, block, block.forward)


def _run(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # reading it would wait for the device
        context_fn=partial(_contexts, block),
    )


_whole_blocks: ContextVar[bool] = ContextVar("blocks run again as a whole", default=False)


@contextmanager
def _as_a_whole() -> Iterator[None]:
    token = _whole_blocks.set(True)
    try:
        yield
    finally:
        _whole_blocks.reset(token)


@contextmanager
def _again(block: nn.Module) -> Iterator[None]:
    with _as_a_whole(), statistics_kept(block):
        yield


@contextmanager
def remade(value: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Let operations inside that want a tensor for their backward pass have it made again.

    Args:
        value: must not change while they want it.
        make: gives the same values; it must not hold `value`, or nothing is saved.
    """
    if _whole_blocks.get():  # such a block keeps nothing at all
        yield
        return
    storage = value.untyped_storage()._cdata, value.shape

    def pack(saved: Tensor) -> Tensor | None:
        same = (saved.untyped_storage()._cdata, saved.shape) == storage
        return None if same else saved

    def unpack(packed: Tensor | None) -> Tensor:
        if packed is not None:
            return packed
        with torch.no_grad():
            return make()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return what surrounds the first forward, and the second."""
    return _as_a_whole(), _again(block)
