"""The SSACN block against the formula of the released code, written plainly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.models.ssa_block import SemanticSpatialBatchNorm, SSABlock


def perturb(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)


def plain_modulation(norm: SemanticSpatialBatchNorm, x: Tensor, e: Tensor, m: Tensor) -> Tensor:
    """x̂·(1 + m·γ(e)) + m·β(e), with batch statistics."""
    normalised = F.batch_norm(x, None, None, training=True)
    gamma, beta = norm.gamma(e), norm.beta(e)
    result: Tensor = normalised * (1 + m * gamma) + m * beta
    return result


def test_modulation_is_the_released_codes() -> None:
    norm = SemanticSpatialBatchNorm(5, 7)
    perturb(norm)
    x, e, m = torch.randn(3, 5, 4, 4), torch.randn(3, 7), torch.rand(3, 1, 4, 4)
    assert torch.allclose(norm(x, e, m), plain_modulation(norm, x, e, m), atol=1e-5)
    everywhere = torch.ones(3, 1, 4, 4)
    assert torch.allclose(norm(x, e, None), norm(x, e, everywhere), atol=1e-6)


def test_block_equals_the_plain_order_of_operations() -> None:
    block = SSABlock(4, 3, 7, upsampling=2)
    perturb(block)
    x, e, m = torch.randn(2, 4, 4, 4), torch.randn(2, 7), torch.rand(2, 1, 8, 8)
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    hidden = block.conv1(F.relu(plain_modulation(block.norm1, large, e, m)))
    hidden = block.conv2(F.relu(plain_modulation(block.norm2, hidden, e, m)))
    expected = block.shortcut(large) + block.scale * hidden
    assert torch.allclose(block(x, e, m), expected, atol=1e-4)
