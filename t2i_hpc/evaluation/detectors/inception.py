"""Inception-v3 of 2015-12-05, the network of FID, as torch-fidelity ported it from TensorFlow.

The network is torch-fidelity's own, with its batch norms folded away and laid out channels-last:
the same features within 1e-5 of the largest, in less than half the time on a CPU. The weights
come from a file that is read without unpickling anything but tensors: torch-fidelity's
constructor would unpickle the file freely, so it is handed a clean copy in memory; it never
downloads.

:class:`LiteratureInceptionV3` is torchvision's network with the mis-scaling of AttnGAN's
successors. The FIDs of AttnGAN, DM-GAN and DF-GAN's papers (23.98, 16.09, 35.49 …) were made with
an old pytorch-fid on torchvision's ImageNet weights. Images are resized to 299 px in 8 bits; then
values in [0, 1] pass torchvision's ``transform_input``, which expects values normalized for
ImageNet: the network sees about [−0.19, 0.43] instead of [−1, 1]. The quirk is part of those
numbers.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.detectors.cpu_kernels import prepare_for_cpu
from t2i_hpc.evaluation.detectors.detector import (
    DetectorIdentity,
    NetworkDetector,
    as_pillow,
    as_tensorflow_1,
    cleanly,
    exact_inference,
    fold_batch_norms,
)
from t2i_hpc.evaluation.detectors.pillow_filter import pillow_levels
from t2i_hpc.evaluation.detectors.weights import inception_file, literature_file, weights_of

NAME = "inception"
_SIZE = 299
_RESIZES = {"own": as_tensorflow_1, "clean": cleanly}
_RESIZE_TEXTS = {
    "own": "bilinear to 299 px as TensorFlow 1 does",
    "clean": "bicubic with smoothing to 299 px, unrounded",
}
LITERATURE_NAME = "inception_literature"
_LEFT_OUT = {"AuxLogits", "dropout", "fc"}
# transform_input turns x·σ + μ back into 2x − 1, per channel, with ImageNet's σ and μ.
_SCALE = (0.229 / 0.5, 0.224 / 0.5, 0.225 / 0.5)
_SHIFT = ((0.485 - 0.5) / 0.5, (0.456 - 0.5) / 0.5, (0.406 - 0.5) / 0.5)


def inception_identity(weights: Path, resize: str, precision: str) -> DetectorIdentity:
    """Return what is known of the detector with these weights.

    Args:
        weights: the file.
        resize: own (TensorFlow 1's) or clean.
        precision: float32 or bfloat16.
    """
    digest = sha256_of_file(weights)
    published = digest.startswith(inception_file().sha256_prefix)
    name, label = "FID", "Inception-v3 of 2015-12-05, torch-fidelity's port"
    if not published:
        name = "FD (Inception-v3, other weights)"
        label = "Inception-v3 with other weights than FID's; this is not FID"
    elif resize == "clean":
        name, label = "clean FID", f"{label}, clean resize"
    if precision != "float32":
        name, label = f"{name} ({precision})", f"{label}, {precision}"
    told = [] if published else ["Inception-v3, other weights"]
    told += ["clean resize"] * (resize == "clean")
    told += [precision] * (precision != "float32")
    preprocessing = f"{_RESIZE_TEXTS[resize]}, (x - 128) / 128, {precision}"
    return DetectorIdentity(
        NAME,
        label,
        name,
        ", ".join(told),
        preprocessing,
        2048,
        1008,
        digest,
        network="Inception-v3, not VGG-16" if published else "not VGG-16",
    )


class InceptionV3(NetworkDetector):
    """Detector of FID: the 2048 features after the last average pooling.

    Args:
        weights: the file.
        device: of the network.
        resize: own (TensorFlow 1's) or clean.
        precision: float32 or bfloat16.
        score_side: px to which images are scaled for the Inception score; None: as they are.
    """

    def __init__(
        self,
        weights: Path,
        device: torch.device,
        *,
        resize: str = "own",
        precision: str = "float32",
        score_side: int | None = None,
    ) -> None:
        super().__init__(inception_identity(weights, resize, precision), device, precision)
        self._score_side = score_side
        self._resize = _RESIZES[resize]
        network = _network(weights)
        # The score's logits leave the bias out, as OpenAI's code does.
        self._classifier: Tensor = network.fc.weight.to(device)
        layers = [layer for name, layer in network.named_children() if name != "fc"]
        self._trunk = fold_batch_norms(nn.Sequential(*layers)).to(device)
        if device.type == "cpu" and precision == "float32":
            self._trunk = prepare_for_cpu(self._trunk, average_counts_padding=False)

    @classmethod
    def identify(cls, settings: EvaluationConfig) -> DetectorIdentity:
        """Return what is known of the configured detector."""
        path = weights_of(inception_file(), NAME, settings.detector_weights)
        return inception_identity(path, settings.detector_resize, settings.detector_precision)

    @classmethod
    def build(cls, settings: EvaluationConfig, device: torch.device) -> InceptionV3:
        """Build the configured detector."""
        return cls(
            weights_of(inception_file(), NAME, settings.detector_weights),
            device,
            resize=settings.detector_resize,
            precision=settings.detector_precision,
            score_side=settings.inception_score_size if "is" in settings.metrics else None,
        )

    def logits(self, features: Tensor, images: Tensor) -> Tensor:
        """Return float32 (B, 1008) for features (B, 2048) of uint8 images (B, 3, H, W)."""
        if self._score_side is not None:
            features = self.features(as_pillow(images, self._score_side).to(torch.uint8))
        with exact_inference():
            return F.linear(features, self._classifier)

    def _extract(self, images: Tensor) -> Tensor:
        inputs = (self._resize(images, _SIZE) - 128) / 128
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        result: Tensor = self._trunk(inputs)
        return result.flatten(1).float()


def _network(weights: Path) -> FeatureExtractorInceptionV3:
    content = _clean_copy(weights)
    try:
        return FeatureExtractorInceptionV3(NAME, ["2048"], feature_extractor_weights_path=content)
    except (RuntimeError, TypeError) as error:
        raise EvaluationError(
            f"{weights} holds the weights of another network than Inception-v3: take the file "
            "that python -m t2i_hpc.fetch what=inception gets"
        ) from error


def _clean_copy(weights: Path) -> io.BytesIO:
    """Return a state dict's file content, written anew from its tensors alone."""
    content = io.BytesIO()
    torch.save(read_weights(weights, "inception"), content)
    content.seek(0)
    return content


def read_weights(weights: Path, what: str) -> object:
    """Read a file of tensors; `what` names it for ``t2i_hpc.fetch``.

    Raises:
        EvaluationError: it holds more than tensors, or is damaged.
    """
    try:
        return torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise EvaluationError(
            f"{weights} holds no weights that can be read safely: get the file again with "
            f"python -m t2i_hpc.fetch what={what}"
        ) from error


def literature_identity(weights: Path, precision: str) -> DetectorIdentity:
    """Return what is known of the detector with these weights; `precision` as in `autocast`."""
    digest = sha256_of_file(weights)
    published = digest.startswith(literature_file().sha256_prefix)
    name = "FID (literature)" if published else "FD (torchvision Inception-v3, other weights)"
    label = "torchvision's Inception-v3 scaled as AttnGAN's successors did; not TensorFlow's FID"
    if precision != "float32":
        name, label = f"{name} ({precision})", f"{label}, {precision}"
    preprocessing = (
        f"Pillow's bilinear to 299 px, bit for bit, x / 255, transform_input, {precision}"
    )
    family = "torchvision Inception-v3"
    family += "" if precision == "float32" else f", {precision}"
    return DetectorIdentity(
        LITERATURE_NAME, label, name, family, preprocessing, 2048, 0, digest, network="not VGG-16"
    )


class LiteratureInceptionV3(NetworkDetector):
    """Detector of the literature's FID: 2048 features after the last average pooling.

    It serves no Inception score: the literature's are of other networks.
    """

    def __init__(self, weights: Path, device: torch.device, *, precision: str = "float32") -> None:
        super().__init__(literature_identity(weights, precision), device, precision)
        self._trunk = fold_batch_norms(_trunk(weights)).to(device)
        if device.type == "cpu" and precision == "float32":
            self._trunk = prepare_for_cpu(self._trunk, average_counts_padding=True)
        self._scale, self._shift = (
            torch.tensor(values, device=device)[:, None, None] for values in (_SCALE, _SHIFT)
        )

    @classmethod
    def identify(cls, settings: EvaluationConfig) -> DetectorIdentity:
        """Return what is known of the configured detector."""
        path = weights_of(literature_file(), LITERATURE_NAME, settings.detector_weights)
        return literature_identity(path, settings.detector_precision)

    @classmethod
    def build(cls, settings: EvaluationConfig, device: torch.device) -> LiteratureInceptionV3:
        """Build the configured detector."""
        path = weights_of(literature_file(), LITERATURE_NAME, settings.detector_weights)
        return cls(path, device, precision=settings.detector_precision)

    def _extract(self, images: Tensor) -> Tensor:
        inputs = pillow_levels(images, _SIZE).float() / 255 * self._scale + self._shift
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        result: Tensor = self._trunk(inputs)
        return result.flatten(1).float()


def _trunk(weights: Path) -> nn.Sequential:
    """Build torchvision's layers in their order, up to the average pooling."""
    from torchvision.models import inception_v3  # takes a second that most commands do not need

    network = inception_v3(weights=None, aux_logits=False, init_weights=False)
    state = read_weights(weights, LITERATURE_NAME)
    if not isinstance(state, Mapping):
        raise _wrong_network(weights)
    # Files made before torch 0.4.1 hold no counters, and counters are of no effect here.
    wanted = network.state_dict()
    found = {name: state[name] for name in wanted if name in state}
    try:
        missing, _ = network.load_state_dict(found, strict=False)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise _wrong_network(weights) from error
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise _wrong_network(weights)
    layers = [(name, layer) for name, layer in network.named_children() if name not in _LEFT_OUT]
    return nn.Sequential(*(layer for _, layer in layers))


def _wrong_network(weights: Path) -> EvaluationError:
    return EvaluationError(
        f"{weights} holds the weights of another network than torchvision's Inception-v3: take "
        f"the file that python -m t2i_hpc.fetch what={LITERATURE_NAME} gets"
    )
