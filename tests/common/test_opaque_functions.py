"""Custom Functions inside a compiled function: the gradients and the kernels of eager execution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from t2i_hpc.losses.gradient_penalty import matching_aware_gradient_penalty
from t2i_hpc.models.discriminator import MatchingDiscriminator


def loss(network: MatchingDiscriminator, image: Tensor, sentence: Tensor) -> Tensor:
    """The penalty and a loss of what it was computed at: first and second derivatives together."""
    penalty, features, logits = matching_aware_gradient_penalty(network, image, sentence)
    return penalty + logits.mean() + features.square().mean()


@pytest.fixture(scope="module")
def found() -> tuple[list[Any], dict[str, tuple[Tensor, ...]]]:
    """The graphs of a compiled loss, and gradients by all parameters of it and of the eager one."""
    torch.manual_seed(0)
    network = MatchingDiscriminator(32, 2, 6)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    given = (network, torch.randn(2, 3, 32, 32), torch.randn(2, 6))
    graphs: list[Any] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend=backend)
    parameters = list(network.parameters())
    gradients = {
        name: torch.autograd.grad(way(*given), parameters)
        for name, way in {"eager": loss, "compiled": compiled}.items()
    }
    return graphs, gradients


def test_first_and_second_derivatives_are_those_of_eager_execution(found: Any) -> None:
    _, gradients = found
    # A graph may lay maps out otherwise, and sum in another order.
    for ours, theirs in zip(gradients["compiled"], gradients["eager"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_no_kernel_is_as_large_as_a_map_and_no_zeros_travel(found: Any) -> None:
    graphs, _ = found
    called = [node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    sizes = {
        node.args[1].meta["val"].shape[2:]
        for node in called
        if node.target is torch.ops.aten.convolution.default
    }
    assert sizes == {(4, 4), (3, 3), (1, 1)}
    assert not [node for node in called if node.target is torch.ops.aten.zeros_like.default]
