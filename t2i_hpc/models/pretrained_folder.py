"""Folders of pretrained networks in transformers' layout; nothing is downloaded.

What a folder holds is checked without importing the library, so that what only needs to know of a
network (a merge on a small machine, an outline) need not wait for it.
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
from safetensors.torch import load_file
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError, UserError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.common.terminal import quiet
from t2i_hpc.models.text_encoder import layers_beyond

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Network = TypeVar("Network", bound=PreTrainedModel)


CONFIG, WEIGHTS = "config.json", "model.safetensors"
_EXTRA = "pip install 't2i-hpc[transformers]'"


@dataclass(frozen=True)
class PretrainedFolder:
    """A network and what belongs to it.

    Attributes:
        folder: its path.
        key: the setting that names the folder.
        config: content of its config.json.
        error: the class of its refusals.
    """

    folder: Path
    key: str
    config: dict[str, Any]
    error: type[UserError] = EvaluationError

    @classmethod
    def open(
        cls,
        given: str,
        key: str,
        kind: str,
        needed: tuple[str, ...] = (),
        *,
        weights: bool = True,
        error: type[UserError] = EvaluationError,
    ) -> PretrainedFolder:
        """Check a folder without reading its weights.

        Args:
            given: the folder, or its model.safetensors.
            key: the setting that holds `given`, for the refusals.
            kind: the network, as config.json's ``model_type`` says it.
            needed: files that must be there beside configuration and weights.
            weights: whether the weights must be there.
            error: the class of refusals.

        Raises:
            UserError: of the class `error`; transformers is not installed, a file is missing or
                damaged, or the folder holds another network.
        """
        files = (CONFIG, WEIGHTS, *needed)
        if not given:
            raise error(
                f"{key} is empty: name the folder of a {kind} model with {', '.join(files)}, "
                "which must be there already"
            )
        folder = Path(given).parent if Path(given).name == WEIGHTS else Path(given)
        for name in files if weights else (CONFIG, *needed):
            if not (folder / name).is_file():
                raise error(
                    f"{key}={given}: {folder / name} is missing; name the folder of a {kind} "
                    f"model with {', '.join(files)}"
                )
        if find_spec("transformers") is None:
            raise error(f"{key}={given} needs an extra: {_EXTRA}")
        config = _read_config(folder / CONFIG, key, error)
        if config.get("model_type") != kind:
            raise error(
                f"{key}={given} holds a network of the kind {config.get('model_type')!r}: name "
                f"the folder of a {kind} model"
            )
        return cls(folder, key, config, error)

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights file."""
        return sha256_of_file(self.folder / WEIGHTS)

    def load(self, network: type[Network], device: torch.device) -> Network:
        """Read the network, all of it, in float32 and evaluation mode, onto `device`.

        Raises:
            UserError: of the class `error`; the weights are damaged, or not those that config.json
                describes.
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
            raise self.unfit() from error
        # What is missing would be drawn at random, and a deeper network would be cut short.
        if found["missing_keys"] or layers_beyond(model.state_dict(), found["unexpected_keys"]):
            raise self.unfit()
        loaded: Network = model.float().eval().requires_grad_(False).to(device)
        return loaded

    def tensors(self) -> dict[str, Tensor]:
        """Read the weights file, real numbers as float32.

        Raises:
            UserError: of the class `error`; it is damaged.
        """
        try:
            loaded = load_file(self.folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise self.unfit() from error
        return {k: v.float() if v.is_floating_point() else v for k, v in loaded.items()}

    def unfit(self) -> UserError:
        """Return the refusal of weights that are not those of the configuration."""
        return self.error(
            f"{self.key}: {self.folder / WEIGHTS} is damaged or does not hold the network that "
            f"{CONFIG} beside it describes; copy both again from the same place"
        )


def _read_config(path: Path, key: str, refusal: type[UserError]) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise refusal(f"{key}: {path} is no JSON: copy it again") from error
    return config if isinstance(config, dict) else {}
