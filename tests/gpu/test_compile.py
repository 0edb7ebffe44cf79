"""What is compiled gives the losses of eager mode."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.trained import largest_difference, strategy_of, train


@pytest.mark.timeout(300)
def test_a_compiled_generator_trains_as_in_eager_mode(gpu: torch.device) -> None:
    eager = train(strategy_of("ssa_gan", gpu, precision="fp32"), 2)
    compiled = strategy_of("ssa_gan", gpu, precision="fp32", compile=["generator"])
    assert largest_difference(eager, train(compiled, 2)) < 1e-3
