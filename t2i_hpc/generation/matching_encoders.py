"""The DAMSM encoders that judge generated images: given as files, or the run's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file, sha256_of_json
from t2i_hpc.common.step import Painter
from t2i_hpc.common.word_numbers import check_same_words
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.engine.checkpoints.tensor_files import read_tensors
from t2i_hpc.generation.rules import DrawingRules
from t2i_hpc.generation.trained import TrainedRun
from t2i_hpc.metrics.protocol import OWN_ENCODERS
from t2i_hpc.models.image_encoder import TRUNKS, build_image_encoder
from t2i_hpc.models.text_encoder import LSTMTextEncoder
from t2i_hpc.systems.encoders import scale_images, vocabulary_of

_OWN_NAMES = ("text_encoder", "image_encoder")


@dataclass(frozen=True)
class MatchingEncoders:
    """Functions that bring captions and images into one space.

    Attributes:
        sentences: of n captions, float (n, D).
        codes: of uint8 images (n, 3, R, R), float (n, D).
    """

    sentences: Callable[[Sequence[str]], Tensor]
    codes: Callable[[Tensor], Tensor]


def encoders_identity(settings: EvaluationConfig) -> str:
    """Return what a protocol says of the encoders.

    Raises:
        EvaluationError: one file is named without the other, or is not there.
    """
    paths = [settings.text_encoder, settings.image_encoder]
    if not any(paths):
        return OWN_ENCODERS
    if not all(paths):
        raise EvaluationError(
            "evaluation.text_encoder and evaluation.image_encoder belong together: name both "
            "files, or neither to take the run's own"
        )
    for path in paths:
        if not Path(path).is_file():
            raise EvaluationError(f"there is no encoder {path}: name a .safetensors file")
    return sha256_of_json([sha256_of_file(Path(path)) for path in paths])


def matching_encoders(
    settings: EvaluationConfig, trained: TrainedRun, rules: DrawingRules
) -> MatchingEncoders:
    """Return the encoders that the settings name, on the run's device.

    They read the very words that images were drawn from.

    Raises:
        EvaluationError: a file does not fit.
    """
    pair = _given(settings, trained) if settings.text_encoder else _own(trained.system)
    networks = [network.to(trained.device).eval() for network in pair]

    def sentences(captions: Sequence[str]) -> Tensor:
        result: Tensor = networks[0](*trained.read(captions, settings.seed, rules)).sentence
        return result

    return MatchingEncoders(sentences, _codes_by(networks[1], trained.device))


def _codes_by(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    def codes(images: Tensor) -> Tensor:
        result: Tensor = network(scale_images(images.to(device))).code
        return result

    return codes


def check_own_encoders(settings: EvaluationConfig, networks: AbstractSet[str]) -> None:
    """Refuse R-precision by a run's own encoders where it has none.

    Args:
        settings: of the evaluation.
        networks: names of the run's networks.

    Raises:
        EvaluationError: R-precision is asked for and nothing can judge it.
    """
    if "r_precision" not in settings.metrics or settings.text_encoder:
        return
    if not set(_OWN_NAMES) <= networks:
        raise EvaluationError(
            "the run has no image encoder of its own to judge R-precision by: name pre-trained "
            "ones with evaluation.text_encoder= and evaluation.image_encoder=, or leave "
            "r_precision out of evaluation.metrics"
        )


def _own(system: Painter) -> tuple[nn.Module, nn.Module]:
    text, image = (system.modules[name] for name in _OWN_NAMES)
    return text, image


def _given(settings: EvaluationConfig, trained: TrainedRun) -> tuple[nn.Module, nn.Module]:
    vocabulary, path = trained.vocabulary, Path(settings.text_encoder)
    text = _text_encoder(path, vocabulary.size)
    key = "evaluation.text_encoder"
    check_same_words(
        f"{key}={path}",
        vocabulary_of(path, key),
        vocabulary.sha256,
        "name the encoder that was pre-trained on the run's data",
    )
    return text, _image_encoder(Path(settings.image_encoder), text.width)


def _text_encoder(path: Path, vocabulary_size: int) -> LSTMTextEncoder:
    tensors = read_tensors(path)
    try:
        words, embedding_width = tensors["embedding.weight"].shape
        width = 2 * tensors["lstm.weight_hh_l0"].shape[1]
        encoder = LSTMTextEncoder(words, width, embedding_width)
        encoder.load_state_dict(tensors)
    except (KeyError, RuntimeError, ValueError) as error:
        raise _no_encoder(path, "text") from error
    if words != vocabulary_size:
        raise EvaluationError(
            f"evaluation.text_encoder={path} knows {words} words and the vocabulary of the data "
            f"has {vocabulary_size}: it was pre-trained on another data set"
        )
    return encoder


def _image_encoder(path: Path, width: int) -> nn.Module:
    tensors = read_tensors(path)
    try:
        encoder = build_image_encoder(_trunk_of(tensors), width)
        encoder.load_state_dict(tensors)
    except (KeyError, StopIteration, RuntimeError, ValueError) as error:
        raise _no_encoder(path, "image") from error
    return encoder


def _trunk_of(tensors: Mapping[str, Tensor]) -> str:
    pooled = tensors["heads.code.weight"].shape[1]
    return next(name for name, trunk in TRUNKS.items() if trunk.pooled_width == pooled)


def _no_encoder(path: Path, kind: str) -> EvaluationError:
    return EvaluationError(
        f"{path} holds no DAMSM {kind} encoder of the right widths: name the file that "
        f"t2i_hpc.pretrain writes as {kind}_encoder.safetensors"
    )
