"""Distances and kernels in blocks where the features lie: no whole matrix, nothing read back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from t2i_hpc.evaluation import neighbors, screening
from t2i_hpc.evaluation.cmmd import code_discrepancy
from t2i_hpc.evaluation.density_coverage import density_and_coverage
from t2i_hpc.evaluation.kid import kernel_distance
from t2i_hpc.evaluation.memorization import memorization
from t2i_hpc.evaluation.neighbors import Neighborhoods
from t2i_hpc.evaluation.precision_recall import precision_and_recall
from tests.evaluation.test_features_metrics import _images_like

COUNT, AT_ONCE = 1500, 64
GENERATED, REAL = (_images_like(COUNT, seed, 1.0, 0.0) for seed in (1, 2))
CPU = torch.device("cpu")
_TO_HOST = {"cpu", "numpy", "tolist", "item", "__float__", "__array__", "__bool__", "__int__"}


class Watch(TorchFunctionMode):
    """Keeps the number of values of the largest result, and of the largest tensor read back."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.read = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _TO_HOST or (name == "to" and args[1:2] == ("cpu",)):
            self.read = max(self.read, args[0].numel())
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple) else (result,)
        sizes = [each.numel() for each in results if isinstance(each, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return result


def _kernel(device: torch.device) -> object:
    return kernel_distance(GENERATED, REAL, subsets=2, size=900, seed=1, device=device)


def _neighbors(device: torch.device) -> object:
    balls = Neighborhoods.of(GENERATED, REAL, 3, device)
    return precision_and_recall(balls), density_and_coverage(balls)


def _codes(device: torch.device) -> object:
    return code_discrepancy(GENERATED, REAL, device=device)


def _nearest(device: torch.device) -> object:
    return memorization(GENERATED, REAL, REAL[:700], share=0.1, device=device)


@pytest.mark.parametrize("metric", [_kernel, _neighbors, _codes, _nearest])
@pytest.mark.parametrize("by_bytes", [True, False])
def test_no_whole_matrix_and_no_features_read_back(
    metric: Callable[[torch.device], object], by_bytes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "multiplies_bytes", lambda device: by_bytes)
    monkeypatch.setattr(screening, "_LEADING", 200)
    monkeypatch.setattr(screening, "AT_ONCE", AT_ONCE)
    for module in (screening, neighbors):
        monkeypatch.setattr(module, "_SAMPLE", 256)
    with Watch() as seen:
        metric(CPU)
    assert 0 < seen.largest < COUNT * COUNT // 2
    assert seen.read <= COUNT  # a value of each image at most, and no features


def test_the_watch_sees_whole_matrices_and_what_is_read_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(screening, "multiplies_bytes", lambda device: False)
    monkeypatch.setattr(screening, "AT_ONCE", COUNT)
    with Watch() as seen:
        _neighbors(CPU)
        torch.from_numpy(GENERATED).to("cpu")
    assert seen.largest >= COUNT * COUNT
    assert seen.read == GENERATED.size
