"""torchvision's Inception-v3 with the mis-scaling of AttnGAN's successors.

The FIDs of AttnGAN, DM-GAN and DF-GAN's papers (23.98, 16.09, 35.49 …) were made with an old
pytorch-fid on torchvision's ImageNet weights. Images are resized to 299 px in 8 bits; then values
in [0, 1] pass torchvision's ``transform_input``, which expects values normalised for ImageNet:
the network sees about [−0.19, 0.43] instead of [−1, 1]. The quirk is part of those numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.metrics.detectors.arithmetic import fold_batch_norms
from t2i_hpc.metrics.detectors.base import DetectorIdentity, NetworkDetector
from t2i_hpc.metrics.detectors.inception import read_weights
from t2i_hpc.metrics.detectors.resizing import as_pillow
from t2i_hpc.metrics.weights import literature_file

NAME = "inception_literature"
_SIZE = 299
_LEFT_OUT = {"AuxLogits", "dropout", "fc"}
# transform_input turns x·σ + μ back into 2x − 1, per channel, with ImageNet's σ and μ.
_SCALE = (0.229 / 0.5, 0.224 / 0.5, 0.225 / 0.5)
_SHIFT = ((0.485 - 0.5) / 0.5, (0.456 - 0.5) / 0.5, (0.406 - 0.5) / 0.5)


def literature_identity(weights: Path, precision: str) -> DetectorIdentity:
    """Return what is known of the detector with these weights; `precision` as in `autocast`."""
    digest = sha256_of_file(weights)
    published = digest.startswith(literature_file().sha256_prefix)
    name = "FID (literature)" if published else "FD (torchvision Inception-v3, other weights)"
    label = "torchvision's Inception-v3 scaled as AttnGAN's successors did; not TensorFlow's FID"
    if precision != "float32":
        name, label = f"{name} ({precision})", f"{label}, {precision}"
    preprocessing = f"Pillow's bilinear to 299 px, x / 255, transform_input, {precision}"
    family = "torchvision Inception-v3"
    family += "" if precision == "float32" else f", {precision}"
    return DetectorIdentity(
        NAME, label, name, family, preprocessing, 2048, 0, digest, network="not VGG-16"
    )


class LiteratureInceptionV3(NetworkDetector):
    """Detector of the literature's FID: 2048 features after the last average pooling.

    It serves no Inception score: the literature's are of other networks.
    """

    def __init__(self, weights: Path, device: torch.device, *, precision: str = "float32") -> None:
        super().__init__(literature_identity(weights, precision), device, precision)
        self._trunk = fold_batch_norms(_trunk(weights)).to(device)
        self._scale, self._shift = (
            torch.tensor(values, device=device)[:, None, None] for values in (_SCALE, _SHIFT)
        )

    def _look(self, images: Tensor) -> Tensor:
        inputs = as_pillow(images, _SIZE) / 255 * self._scale + self._shift
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        result: Tensor = self._trunk(inputs)
        return result.flatten(1).float()


def _trunk(weights: Path) -> nn.Sequential:
    """Build torchvision's layers in their order, up to the average pooling."""
    from torchvision.models import inception_v3  # takes a second that most commands do not need

    network = inception_v3(weights=None, aux_logits=False, init_weights=False)
    state = read_weights(weights, NAME)
    if not isinstance(state, Mapping):
        raise _another(weights)
    # Files made before torch 0.4.1 hold no counters, and counters are of no effect here.
    wanted = network.state_dict()
    found = {name: state[name] for name in wanted if name in state}
    try:
        missing, _ = network.load_state_dict(found, strict=False)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise _another(weights) from error
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise _another(weights)
    layers = [(name, layer) for name, layer in network.named_children() if name not in _LEFT_OUT]
    return nn.Sequential(*(layer for _, layer in layers))


def _another(weights: Path) -> EvaluationError:
    return EvaluationError(
        f"{weights} holds the weights of another network than torchvision's Inception-v3: take "
        f"the file that python -m t2i_hpc.fetch what={NAME} gets"
    )
