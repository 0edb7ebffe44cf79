"""Inception-v3 of 2015-12-05, the network of FID, as torch-fidelity ported it from TensorFlow.

The network and its resize (TensorFlow 1's bilinear, inside the graph) are torch-fidelity's
own; the weights come from a file that is read without unpickling anything but tensors.
torch-fidelity's constructor would unpickle the file freely, so it is handed a clean copy in
memory; it never downloads.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.metrics.detectors.arithmetic import exact_inference
from t2i_hpc.metrics.weights import inception_file


class InceptionV3:
    """Detector of FID: the 2048 features after the last average pooling."""

    name = "inception"
    preprocessing = "bilinear to 299 px as TensorFlow 1 does, (x - 128) / 128"
    width = 2048

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.sha256 = sha256_of_file(weights)
        if self.sha256.startswith(inception_file().sha256_prefix):
            self.metric_name = "FID"
            self.label = "Inception-v3 of 2015-12-05, torch-fidelity's port"
        else:
            self.metric_name = "FD (Inception-v3, other weights)"
            self.label = "Inception-v3 with other weights than FID's; this is not FID"
        self._device = device
        self._network = _network(weights).to(device)

    def features(self, images: Tensor) -> Tensor:
        """Return float32 (B, 2048) for uint8 images (B, 3, H, W) of any size."""
        with exact_inference():
            result: Tensor = self._network(images.to(self._device))[0]
        return result


def _network(weights: Path) -> FeatureExtractorInceptionV3:
    content = _clean_copy(weights)
    try:
        return FeatureExtractorInceptionV3(
            InceptionV3.name, ["2048"], feature_extractor_weights_path=content
        )
    except (RuntimeError, TypeError) as error:
        raise EvaluationError(
            f"{weights} holds the weights of another network than Inception-v3: take the file "
            "that python -m t2i_hpc.fetch what=inception gets"
        ) from error


def _clean_copy(weights: Path) -> io.BytesIO:
    """Return a state dict's file content, written anew from its tensors alone."""
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise EvaluationError(
            f"{weights} holds no weights that can be read safely: get the file again with "
            "python -m t2i_hpc.fetch what=inception"
        ) from error
    content = io.BytesIO()
    torch.save(state, content)
    content.seek(0)
    return content
