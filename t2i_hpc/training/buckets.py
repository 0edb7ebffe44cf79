"""The buckets in which DDP averages gradients: what counts as ready, and in which order they go.

DDP sends its buckets one after the other, each as soon as the last of its gradients is there. Laid
out in the order in which a system registers its parameters, the first bucket may wait for the end
of a backward, and so may all others behind it. Left to itself DDP lays them out anew after the
first step of a session; sums are then taken in another order, and a resumed run would not be
bit-identical. So the first backward of a run sends nothing (:func:`record_arrivals`), and its
gradients are averaged afterwards, in the buckets of all later steps (:func:`reduce_in_order`).
Checkpoints hold the order, with which a resumed session begins (:func:`lay_out`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from t2i_hpc.systems.base import Losses, Term


class _Reach(torch.autograd.Function):
    """The identity of a loss, on whose graph parameters hang that it may not reach.

    Their gradient is left undefined: nothing is computed or added, but their hooks are called.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *([None] * ctx.count)


def reach(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return `loss`, whose backward lets DDP see every parameter, reached or not.

    So no rank waits for what another does not send, and DDP need not search the graph. What the
    loss does not reach on any rank gets a gradient of zero.
    """
    result: Tensor = _Reach.apply(loss, *parameters)
    return result


@contextmanager
def record_arrivals(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Give a list that fills with `parameters` in the order in which a backward reaches them.

    Those that it does not reach are last.
    """
    order: dict[nn.Parameter, None] = {}
    found: list[nn.Parameter] = []
    hooks = [p.register_post_accumulate_grad_hook(order.setdefault) for p in parameters]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    found.extend(order | dict.fromkeys(parameters))


def lay_out(replicated: DistributedDataParallel, order: Sequence[nn.Parameter]) -> None:
    """Lay DDP's buckets out in `order`, that of rank 0 everywhere; gradients are forgotten.

    A collective call, once for each wrapped module.
    """
    for parameter in order:
        parameter.grad = None
    _enter(replicated, order, lambda: None)  # by this backward DDP learns the order, of zeros
    for parameter in order:
        parameter.grad = None


def reduce_in_order(replicated: DistributedDataParallel, order: Sequence[nn.Parameter]) -> None:
    """Lay DDP's buckets out in `order`, and average the gradients that are there."""
    gradients = [p.grad for p in order]
    lay_out(replicated, order)

    def put_back() -> None:  # after DDP has laid out its buckets: copied into them as in any step
        for parameter, gradient in zip(order, gradients, strict=True):
            parameter.grad = gradient

    _enter(replicated, order, put_back)


def _enter(
    replicated: DistributedDataParallel,
    order: Sequence[nn.Parameter],
    before: Callable[[], None],
) -> None:
    """Let a backward through the wrapped module reach parameters in `order`; it computes none."""

    def loss(context: Any) -> Losses:
        before()
        value = torch.zeros((), device=order[0].device, requires_grad=True)
        for parameter in reversed(order):  # a backward begins at the end of the chain
            value = reach(value, [parameter])
        return {"order": Term(value)}

    replicated(loss, None)[0].backward()
