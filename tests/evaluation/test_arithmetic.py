"""Scores are computed in float32 whatever the process was set to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from t2i_hpc.evaluation.detectors.detector import exact_inference


@pytest.fixture
def restored() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.usefixtures("restored")
def test_no_product_is_rounded_to_tf32(before: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = before
    with exact_inference():
        assert torch.backends.cuda.matmul.allow_tf32 is False
        assert torch.backends.cudnn.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_the_override_of_nvidias_containers_does_not_win() -> None:
    code = (
        "import torch; from t2i_hpc.evaluation.detectors.detector import exact_inference\n"
        "print(torch.backends.cuda.matmul.allow_tf32)\n"
        "with exact_inference(): print(torch.backends.cuda.matmul.allow_tf32)"
    )
    override = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=override, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False"]
