"""The SSACN block against the formulas of the released code and the paper, written plainly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.models.ssa_generator import SemanticSpatialBatchNorm, SSABlock


def perturb(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)


def plain_modulation(norm: SemanticSpatialBatchNorm, x: Tensor, e: Tensor, m: Tensor) -> Tensor:
    """x̂·(1 + m·γ(e)) + m·β(e), with batch statistics."""
    normalized = F.batch_norm(x, None, None, training=True)
    gamma, beta = norm.gamma(e), norm.beta(e)
    result: Tensor = normalized * (1 + m * gamma) + m * beta
    return result


def paper_modulation(norm: SemanticSpatialBatchNorm, x: Tensor, e: Tensor, m: Tensor) -> Tensor:
    """SSA-GAN Eq. 5: m·(γ(e)·x̂ + β(e))."""
    result: Tensor = m * (norm.gamma(e) * F.batch_norm(x, None, None, training=True) + norm.beta(e))
    return result


def test_modulation_is_the_released_codes() -> None:
    norm = SemanticSpatialBatchNorm(5, 7)
    perturb(norm)
    x, e, m = torch.randn(3, 5, 4, 4), torch.randn(3, 7), torch.rand(3, 1, 4, 4)
    assert torch.allclose(norm(x, e, m), plain_modulation(norm, x, e, m), atol=1e-5)
    everywhere = torch.ones(3, 1, 4, 4)
    assert torch.allclose(norm(x, e, None), norm(x, e, everywhere), atol=1e-6)


def test_the_papers_modulation_is_equation_5() -> None:
    norm = SemanticSpatialBatchNorm(5, 7, "paper")
    perturb(norm)
    x, e, m = torch.randn(3, 5, 4, 4), torch.randn(3, 7), torch.rand(3, 1, 4, 4)
    assert torch.allclose(norm(x, e, m), paper_modulation(norm, x, e, m), atol=1e-5)
    assert float(norm(x, e, torch.zeros(3, 1, 4, 4)).detach().abs().max()) == 0
    everywhere = torch.ones(3, 1, 4, 4)
    assert torch.allclose(norm(x, e, None), norm(x, e, everywhere), atol=1e-6)


@pytest.mark.parametrize("modulation", ["code", "paper"])
def test_the_text_can_be_learnt_from_the_start(modulation: str) -> None:
    """Once the residual scale has moved; the paper's form with γ = 0 would stay dead."""
    block = SSABlock(4, 4, 7, upsampling=1, modulation=modulation)
    torch.nn.init.ones_(block.scale)
    mask = torch.rand(2, 1, 4, 4)
    image = block(torch.randn(2, 4, 4, 4), torch.randn(2, 7), mask)
    image.square().sum().backward()
    for norm in (block.norm1, block.norm2):
        for affine in (norm.gamma, norm.beta):
            gradient = affine.output.weight.grad
            assert gradient is not None
            assert bool(gradient.any())


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "nearest"),
        ({"enlargement": "bilinear"}, "bilinear"),
    ],
)
@pytest.mark.parametrize("modulation", ["code", "paper"])
def test_block_equals_the_plain_order_of_operations(
    options: dict[str, str], mode: str, modulation: str
) -> None:
    block = SSABlock(4, 3, 7, upsampling=2, modulation=modulation, **options)
    perturb(block)
    x, e, m = torch.randn(2, 4, 4, 4), torch.randn(2, 7), torch.rand(2, 1, 8, 8)
    aligned = True if mode == "bilinear" else None
    large = F.interpolate(x, scale_factor=2, mode=mode, align_corners=aligned)
    modulate = plain_modulation if modulation == "code" else paper_modulation
    hidden = block.conv1(F.relu(modulate(block.norm1, large, e, m)))
    hidden = block.conv2(F.relu(modulate(block.norm2, hidden, e, m)))
    expected = block.shortcut(large) + block.scale * hidden
    assert torch.allclose(block(x, e, m), expected, atol=1e-4)
