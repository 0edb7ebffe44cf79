"""Convolutions that are differentiated twice: torch's values, by ordinary kernels alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from t2i_hpc.common.double_backward import gradients_by_inputs, twice_differentiable
from t2i_hpc.models.discriminator import Convolution

CASES = [(4, 2, 1, False), (3, 1, 1, False), (3, 1, 1, True), (1, 1, 0, True)]


class Recorder(TorchDispatchMode):
    """Keeps the kernel shapes of forward convolutions and what each backward is asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[torch.Size] = []
        self.asked: list[list[bool]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.convolution.default:
            self.kernels.append(args[1].shape)
        if function is torch.ops.aten.convolution_backward.default:
            self.asked.append(list(args[10]))
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def as_torch() -> Iterator[None]:
    yield


def layers(size: int, stride: int, padding: int, bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    made = [
        Convolution(3, 4, size, stride, padding, bias=bias),
        nn.Tanh(),
        Convolution(4, 2, size, stride, padding, bias=bias),
    ]
    return nn.Sequential(*made).double()


def penalty(network: nn.Module, image: Tensor) -> Tensor:
    (gradient,) = gradients_by_inputs(network(image), (image,))
    return gradient.flatten(1).square().sum(1).pow(3).mean()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "stride", "padding", "bias"), CASES)
def test_second_derivatives_are_torchs(
    size: int, stride: int, padding: int, bias: bool, layout: torch.memory_format
) -> None:
    found: list[list[Tensor]] = []
    for way in (as_torch, twice_differentiable):
        network = layers(size, stride, padding, bias).to(memory_format=layout)
        image = torch.linspace(-1, 1, 2 * 3 * 64, dtype=torch.float64).view(2, 3, 8, 8)
        image = image.contiguous(memory_format=layout).requires_grad_()
        with way():
            value = penalty(network, image)
        value.backward()
        grads = [p.grad for p in (*network.parameters(), image) if p.grad is not None]
        found.append([value.detach(), *grads])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_first_derivatives_of_all_arguments_can_be_differentiated() -> None:
    layer = Convolution(2, 3, 3, padding=1).double()
    image = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def run(value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with twice_differentiable():
            parameters = {"weight": weight, "bias": bias}
            result: Tensor = torch.func.functional_call(layer, parameters, (value,))
            return result

    assert layer.bias is not None
    given = (image, layer.weight, layer.bias)
    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


def test_no_kernel_is_as_large_as_a_map_and_no_gradient_is_computed_for_nothing() -> None:
    network = layers(3, 1, 1, False)
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    with Recorder() as seen, twice_differentiable():
        value = penalty(network, image)
    assert seen.asked == [[True, False, False]] * 2
    with seen:
        value.backward()
    assert {kernel[2:] for kernel in seen.kernels} == {(3, 3)}
    with Recorder() as plain:
        penalty(network, image).backward()
    assert (8, 8) in {kernel[2:] for kernel in plain.kernels}  # what torch does by itself


def test_elsewhere_it_is_torchs_layer_to_the_bit() -> None:
    layer = Convolution(3, 4, 3, padding=1)
    plain = nn.Conv2d(3, 4, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    image = torch.randn(2, 3, 8, 8)
    assert torch.equal(layer(image), plain(image))
    assert "Convolution" in type(layer(image).grad_fn).__name__
    assert not isinstance(layer(image).grad_fn, torch.autograd.function.BackwardCFunction)


def test_autocast_reaches_both_derivatives() -> None:
    network = layers(3, 1, 1, True).float()
    image = torch.randn(2, 3, 8, 8, requires_grad=True)
    with twice_differentiable(), torch.autocast("cpu", torch.bfloat16):
        output = network(image)
    assert output.dtype == torch.bfloat16
    (gradient,) = gradients_by_inputs(output.float(), (image,))
    gradient.square().sum().backward()
    weight = network.get_parameter("0.weight")
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    assert bool(weight.grad.isfinite().all()) and bool(weight.grad.any())
