"""Networks of transformers in local folders, DINOv2 among them; nothing is downloaded.

What a folder holds is checked before any image is generated, without importing the library, so
that a merge on a small machine need not wait for it. DINOv2's features follow people's judgment
better than Inception's: Stein et al. (NeurIPS 2023) compare the class tokens of whole images at
224 px. The distance depends on the size of the network; the hash of its weights in the protocol
keeps sizes apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.common.terminal import quiet
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity, NetworkDetector, cleanly
from t2i_hpc.models.text_encoder import layers_beyond

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Network = TypeVar("Network", bound=PreTrainedModel)


CONFIG, WEIGHTS = "config.json", "model.safetensors"
_EXTRA = "pip install 't2i-hpc[transformers]'"
NAME = "dinov2"
_KEY = "evaluation.detector_weights"
_SIZE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, channel by channel


@dataclass(frozen=True)
class PretrainedFolder:
    """A network and what belongs to it.

    Attributes:
        folder: its path.
        key: the setting that names the folder.
        config: content of its config.json.
    """

    folder: Path
    key: str
    config: dict[str, Any]

    @classmethod
    def open(
        cls, given: str, key: str, kind: str, needed: tuple[str, ...] = ()
    ) -> PretrainedFolder:
        """Check a folder without reading its weights.

        Args:
            given: the folder, or its model.safetensors.
            key: the setting that holds `given`, for the refusals.
            kind: the network, as config.json's ``model_type`` says it.
            needed: files that must be there beside configuration and weights.

        Raises:
            EvaluationError: transformers is not installed, a file is missing or damaged, or the
                folder holds another network.
        """
        files = (CONFIG, WEIGHTS, *needed)
        if not given:
            raise EvaluationError(
                f"{key} is empty: name the folder of a {kind} model with {', '.join(files)}, "
                "which must be there already"
            )
        folder = Path(given).parent if Path(given).name == WEIGHTS else Path(given)
        for name in files:
            if not (folder / name).is_file():
                raise EvaluationError(
                    f"{key}={given}: {folder / name} is missing; name the folder of a {kind} "
                    f"model with {', '.join(files)}"
                )
        if find_spec("transformers") is None:
            raise EvaluationError(f"{key}={given} needs an extra: {_EXTRA}")
        config = _read_config(folder / CONFIG, key)
        if config.get("model_type") != kind:
            raise EvaluationError(
                f"{key}={given} holds a network of the kind {config.get('model_type')!r}: name "
                f"the folder of a {kind} model"
            )
        return cls(folder, key, config)

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights file."""
        return sha256_of_file(self.folder / WEIGHTS)

    def load(self, network: type[Network], device: torch.device) -> Network:
        """Read the network, all of it, in float32 and evaluation mode, onto `device`.

        Raises:
            EvaluationError: the weights are damaged, or not those that config.json describes.
        """
        reader: Any = network  # the library's types do not know of the loading info
        try:
            with quiet():
                model, found = reader.from_pretrained(
                    self.folder,
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                )
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise self._unfit() from error
        # What is missing would be drawn at random, and a deeper network would be cut short.
        if found["missing_keys"] or layers_beyond(model.state_dict(), found["unexpected_keys"]):
            raise self._unfit()
        loaded: Network = model.float().eval().requires_grad_(False).to(device)
        return loaded

    def _unfit(self) -> EvaluationError:
        return EvaluationError(
            f"{self.key}: {self.folder / WEIGHTS} is damaged or does not hold the network that "
            f"{CONFIG} beside it describes; copy both again from the same place"
        )


def _read_config(path: Path, key: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise EvaluationError(f"{key}: {path} is no JSON: copy it again") from error
    return config if isinstance(config, dict) else {}


def dinov2_identity(given: str, precision: str) -> DetectorIdentity:
    """Return what is known of the detector.

    Args:
        given: folder of the network, or its model.safetensors.
        precision: float32 or bfloat16.

    Raises:
        EvaluationError: the folder or the library that reads it is not there.
    """
    folder = _open(given)
    width = folder.config["hidden_size"]
    suffix = "" if precision == "float32" else f", {precision}"
    return DetectorIdentity(
        name=NAME,
        label=f"class token of the DINOv2 with {width} features{suffix}; this is not FID",
        metric_name=f"FD (DINOv2{suffix})",
        family=f"DINOv2{suffix}",
        preprocessing=f"antialiased bicubic to {_SIZE} px, unrounded, (x / 255 - {_MEAN}) / "
        f"{_STD}, {precision}",
        width=width,
        classes=0,
        sha256=folder.sha256,
    )


class DINOv2(NetworkDetector):
    """Detector of FD (DINOv2): the class token after the last layer norm."""

    def __init__(self, given: str, device: torch.device, *, precision: str = "float32") -> None:
        from transformers import Dinov2Model

        super().__init__(dinov2_identity(given, precision), device, precision)
        self._network = _open(given).load(Dinov2Model, device)
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (_MEAN, _STD)
        )

    @classmethod
    def identify(cls, settings: EvaluationConfig) -> DetectorIdentity:
        """Return what is known of the configured detector."""
        return dinov2_identity(settings.detector_weights, settings.detector_precision)

    @classmethod
    def build(cls, settings: EvaluationConfig, device: torch.device) -> DINOv2:
        """Build the configured detector."""
        return cls(settings.detector_weights, device, precision=settings.detector_precision)

    def _extract(self, images: Tensor) -> Tensor:
        inputs = (cleanly(images, _SIZE) / 255 - self._mean) / self._std
        token: Tensor = self._network(inputs).last_hidden_state[:, 0]
        return token.float()


def _open(given: str) -> PretrainedFolder:
    folder = PretrainedFolder.open(given, _KEY, NAME)
    if not isinstance(folder.config.get("hidden_size"), int):
        raise EvaluationError(f"{_KEY}={given}: {CONFIG} states no hidden_size: copy it again")
    return folder
