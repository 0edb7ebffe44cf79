"""The gradient of a gradient: convolutions whose second derivative is cheap.

torch's own double backward of a convolution computes the weight's second gradient as a forward
convolution whose *kernel is a whole map* (256×256 for the first layer), a shape that no library
has a quick kernel for. Here the gradient by the input is a convolution of its own, whose backward
asks ``aten.convolution_backward`` for the weight's gradient, as every first derivative does
(StyleGAN2-ADA's remedy). Equal to torch's in float64 to 1e-12.

Only forwards inside :func:`twice_differentiable` take this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.opaque_functions import TwoWayFunction, opaque

_convolution_backward = torch.ops.aten.convolution_backward


T = TypeVar("T")
Side = tuple[int, int]  # down and across


class _Geometry(NamedTuple):
    stride: Side
    padding: Side


class _State:
    """Of the process, not of a thread: CUDA's backward runs in a thread of its own."""

    twice = False
    inputs_only = False


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Let forwards inside be differentiated twice without kernels as large as a map."""
    before, _State.twice = _State.twice, True
    try:
        yield
    finally:
        _State.twice = before


def gradients_by_inputs(output: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return ∂(Σ output)/∂inputs, to be differentiated again.

    A custom Function is not told that ``autograd.grad`` wants no weights' gradients, and would
    compute them for nothing: a third of the backward pass.
    """
    before, _State.inputs_only = _State.inputs_only, True
    try:
        return torch.autograd.grad(output.sum(), inputs, create_graph=True)
    finally:
        _State.inputs_only = before


def with_input_gradients(
    function: Callable[..., tuple[Tensor, T]], inputs: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor, T]:
    """Return ∂(Σ output)/∂inputs, to be differentiated again, the output and what comes with it.

    In a compiled function the first derivative must be inside too, as one of torch.func: a
    compiled network is not differentiated twice from outside.

    Args:
        function: returns an output and anything else of tensors.
        inputs: its arguments; their own graph is not entered.
    """
    if torch.compiler.is_compiling():
        return _with_traced_gradients(function, inputs)
    # Views of leaves: hooks on the inputs of modules, as of torch's FLOP counter, refuse to see
    # a leaf differentiated.
    leaves = [value.detach().requires_grad_() for value in inputs]
    views = [leaf.view_as(leaf) for leaf in leaves]
    with twice_differentiable():
        output, others = function(*views)
    return gradients_by_inputs(output, views), output, others


def _with_traced_gradients(
    function: Callable[..., tuple[Tensor, T]], inputs: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor, T]:
    def summed(*values: Tensor) -> tuple[Tensor, tuple[Tensor, T]]:
        output, others = function(*values)
        return output.sum(), (output, others)

    by_inputs = torch.func.grad(summed, argnums=tuple(range(len(inputs))), has_aux=True)
    gradients, (output, others) = by_inputs(*(value.detach() for value in inputs))
    return gradients, output, others


def conv2d(
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Return torch's ``conv2d`` (one group, no dilation); values are torch's bit for bit.

    Args:
        value: (B, C, H, W).
        weight: (C', C, h, w).
        bias: (C',) or None.
        stride, padding: down and across.
    """
    # A compiled phase does not see the state that it was traced in, and loses nothing by this way.
    if _State.twice or torch.compiler.is_compiling():
        return _twice_differentiable_conv2d(value, weight, bias, stride, padding)
    return F.conv2d(value, weight, bias, stride, padding)


def _convolve(
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    device = value.device.type
    if torch.is_autocast_enabled(device):  # here: a Function's backward knows no autocast
        dtype = torch.get_autocast_dtype(device)
        value, weight = value.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    result: Tensor = _Convolution.call(value, weight, bias, tuple(stride), tuple(padding))
    return result


_twice_differentiable_conv2d = opaque(
    "conv2d(Tensor value, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor",
    _convolve,
)


class _Convolution(TwoWayFunction):
    @staticmethod
    def forward(
        value: Tensor, weight: Tensor, bias: Tensor | None, stride: Side, padding: Side
    ) -> Tensor:
        return F.conv2d(value, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        value, weight, _, stride, padding = inputs
        ctx.save_for_backward(value, weight)
        ctx.geometry = _Geometry(stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, None, None
        value, weight = ctx.saved_tensors
        # A logit's gradient has no layout of its own; all before it take the maps'.
        gradient = gradient.contiguous(memory_format=_layout_of(value))
        by_value = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_value = _GradientByInput.call(gradient, weight, value.shape, *ctx.geometry)
        if not _State.inputs_only:
            if ctx.needs_input_grad[1]:
                by_weight = _by_weight(gradient, value, weight, ctx.geometry)
            if ctx.needs_input_grad[2]:
                by_bias = gradient.sum((0, 2, 3))
        return by_value, by_weight, by_bias, None, None


class _GradientByInput(TwoWayFunction):
    """The transposed convolution, linear in gradient and weight."""

    @staticmethod
    def forward(
        gradient: Tensor, weight: Tensor, shape: torch.Size, stride: Side, padding: Side
    ) -> Tensor:
        geometry, layout = _Geometry(stride, padding), _layout_of(gradient)
        # Its shape is read, its values are not: one value expanded to it would be copied to all.
        like = torch.empty(
            shape, dtype=gradient.dtype, device=gradient.device, memory_format=layout
        )
        laid_out = weight.contiguous(memory_format=layout)
        by_value = _convolution_backward(
            gradient, like, laid_out, None, *_arguments(geometry), [True, False, False]
        )[0]
        result: Tensor = by_value.contiguous(memory_format=layout)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        gradient, weight, _, stride, padding = inputs
        ctx.save_for_backward(gradient, weight)
        ctx.geometry = _Geometry(stride, padding)

    @staticmethod
    def backward(ctx: Any, second: Tensor | None) -> tuple[Tensor | None, ...]:
        if second is None:
            return None, None, None, None, None
        gradient, weight = ctx.saved_tensors
        by_gradient = by_weight = None
        if ctx.needs_input_grad[0]:
            by_gradient = F.conv2d(second, weight, None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            by_weight = _by_weight(gradient, second, weight, ctx.geometry)
        return by_gradient, by_weight, None, None, None


def _by_weight(gradient: Tensor, value: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    result: Tensor = _convolution_backward(
        gradient, value, weight, None, *_arguments(geometry), [False, True, False]
    )[1]
    return result


def _arguments(geometry: _Geometry) -> tuple[Any, ...]:
    """Return stride, padding, dilation, transposed, output padding and groups."""
    return geometry.stride, geometry.padding, (1, 1), False, (0, 0), 1


def _layout_of(value: Tensor) -> torch.memory_format:
    last = value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
