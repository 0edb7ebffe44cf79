"""Initial weights of pre-training's image encoder: ImageNet's, a DAMSM file's, or random ones.

The reference starts from torchvision's Inception-v3 for ImageNet and never trains it. Those
weights are in no package, so they are named as a file; training downloads nothing.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.encoder_settings import PretrainedTrunkConfig
from t2i_hpc.models.image_encoder import ImageEncoder, InceptionTrunk, build_image_encoder
from t2i_hpc.systems.encoders import (
    build_images_encoder,
    check_side,
    is_given,
    reads_initial_weights,
)

_LOG = logging.getLogger("t2i_hpc")
_INCEPTION = "inception_v3"
_KEY = "system.image_encoder.imagenet_weights"
_COUNTER = "num_batches_tracked"  # missing in the files of 2018, and of no effect
_ERRORS = (OSError, EOFError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError)


def build_pretraining_encoder(config: PretrainedTrunkConfig, width: int) -> ImageEncoder:
    """Build the image encoder that pre-training starts from.

    Args:
        config: which network, and the one place its weights come from.
        width: length of a text vector.

    Raises:
        ConfigurationError: no start is named, more than one, or a file that does not fit.
    """
    _check_one_start(config)
    check_side(config)
    if config.name != _INCEPTION or config.weights:
        return build_images_encoder(config, width)
    encoder = build_image_encoder(
        config.name,
        width,
        align_corners=config.align_corners,
        batch_statistics=config.batch_statistics,
    )
    if not isinstance(encoder.trunk, InceptionTrunk):
        raise TypeError(f"{config.name} is {type(encoder.trunk).__name__}")
    if not reads_initial_weights("image_encoder"):
        return encoder
    if config.trunk == "random":
        _LOG.warning(
            "RANDOM Inception-v3 under DAMSM (system.image_encoder.trunk=random): good for "
            "trials only; published encoders start from ImageNet weights (%s)",
            _KEY,
        )
        randomize_trunk(encoder.trunk)
    else:
        load_imagenet(encoder.trunk, Path(config.imagenet_weights))
    return encoder


def load_imagenet(trunk: InceptionTrunk, path: Path) -> None:
    """Load torchvision's Inception-v3 classifier into the trunk, without its last layers.

    Args:
        trunk: gets the weights.
        path: a state dict under torchvision's names, .safetensors or what torch.save wrote.

    Raises:
        ConfigurationError: the file is missing, damaged, holds more than tensors, or is of
            another network.
    """
    try:
        missing = trunk.load_state_dict(_renamed(_read(path), trunk), strict=False).missing_keys
    except _ERRORS as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigurationError(f"{_KEY}={path} cannot be loaded: {reason}") from error
    lacking = [name for name in missing if not name.endswith(_COUNTER)]
    if lacking:
        raise ConfigurationError(
            f"{_KEY}={path} is not torchvision's Inception-v3: it lacks {len(lacking)} tensors "
            f"such as {lacking[0]}; name the file that torchvision's "
            "inception_v3(weights='IMAGENET1K_V1') downloads"
        )


def randomize_trunk(trunk: nn.Module) -> None:
    """Initialize convolutions after He et al. (2015), which keeps signals through 94 layers."""
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _renamed(stored: object, trunk: InceptionTrunk) -> dict[str, Tensor]:
    """Rename a classifier's tensors to the trunk's; those of its last layers are left out."""
    if not isinstance(stored, Mapping):
        raise ValueError("it is no state dict")
    from torchvision.models import inception_v3  # takes a second that most commands do not need

    with torch.device("meta"):  # its names are wanted, not its weights
        classifier = inception_v3(weights=None, aux_logits=False, init_weights=False)
    # The trunk holds the classifier's layers in their order, so their names pair up.
    theirs = [name for name in classifier.state_dict() if not name.startswith("fc.")]
    pairs = zip(trunk.state_dict(), theirs, strict=True)
    return {ours: stored[name] for ours, name in pairs if name in stored}


def _check_one_start(config: PretrainedTrunkConfig) -> None:
    """Refuse no start at all, several at once, and Inception's for another network."""
    section = "system.image_encoder"
    named = {
        f"{section}.weights={config.weights}": bool(config.weights),
        f"{_KEY}={config.imagenet_weights}": bool(config.imagenet_weights),
        f"{section}.trunk=random": config.trunk == "random",
    }
    starts = [text for text, given in named.items() if given]
    if len(starts) > 1:
        raise ConfigurationError(f"the image encoder has one start, not {' and '.join(starts)}")
    if config.name != _INCEPTION and starts and not config.weights:
        raise ConfigurationError(
            f"{starts[0]} belongs to inception_v3: {config.name} brings its ImageNet weights"
        )
    if config.name == _INCEPTION and not starts and not is_given("image_encoder"):
        raise ConfigurationError(
            f"Inception-v3's weights are in no package: name torchvision's ImageNet file as {_KEY}"
            f", or a DAMSM image encoder as {section}.weights, or take {section}.name="
            f"efficientnet_lite0, or, for a trial, {section}.trunk=random"
        )
