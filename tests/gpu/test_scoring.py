"""Features of a detector on a GPU are the CPU's."""

from __future__ import annotations

import torch

from t2i_hpc.evaluation.detectors.efficientnet_lite import EfficientNetLite0


def test_features_are_those_of_the_cpu(device: torch.device) -> None:
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    expected = EfficientNetLite0(torch.device("cpu")).features(images)
    found = EfficientNetLite0(device).features(images.to(device)).cpu()
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
