"""The text and image encoders that systems share: building them, their weights, their DAMSM terms.

A checkpoint holds the weights of every network, frozen ones too. Whoever builds a system in order
to load one needs no files of initial weights, so a run works where they are gone: moved to
another machine, archived, or shared without its pre-trained encoders.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.transfer import to_device
from t2i_hpc.config.encoder_settings import (
    BERTConfig,
    DAMSMConfig,
    ImageEncoderConfig,
    TextEncoderConfig,
)
from t2i_hpc.config.gan_settings import SystemConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.captions import VOCABULARY_NOTE, check_same_words
from t2i_hpc.losses.adversarial import at_least_float32
from t2i_hpc.losses.damsm import Captions, DAMSMSettings, damsm_losses
from t2i_hpc.models.image_encoder import ImageEncoder, build_image_encoder, side_of
from t2i_hpc.models.text_encoder import (
    BERTTextEncoder,
    LSTMTextEncoder,
    TextEncoder,
    TextFeatures,
    new_bert,
    pretrained_bert,
    untrained_bert,
)
from t2i_hpc.systems.base import Term

if TYPE_CHECKING:
    from transformers import BertModel

_LOG = logging.getLogger("t2i_hpc")
_ALL, _NONE_YET = "all networks", "an outline has no weights"
_FOLLOWING: ContextVar[frozenset[str]] = ContextVar("networks that follow", default=frozenset())


def build_text_encoder(config: TextEncoderConfig, vocabulary_size: int) -> TextEncoder:
    """Build the text encoder, from its weights file where one is named.

    Raises:
        ConfigurationError: a file is damaged or does not fit.
    """
    encoder: TextEncoder
    if config.name == "clip":
        raise ConfigurationError(
            "system.text_encoder.name=clip belongs to system=clip_gan: take lstm or bert"
        )
    if config.name == "bert":
        encoder = build_bert(config.bert, config.width, vocabulary_size)
    else:
        size, width = config.embedding_width, config.width
        encoder = LSTMTextEncoder(vocabulary_size, width, size, config.dropout)
    if config.weights:
        load_weights(encoder, Path(config.weights), "system.text_encoder.weights")
    elif reads_initial_weights("text_encoder") and not config.bert.pretrained:
        _LOG.info("text encoder: random weights (system.text_encoder.weights is empty)")
    return encoder


def build_bert(config: BERTConfig, width: int, vocabulary_size: int) -> TextEncoder:
    """Build the text encoder.

    Args:
        config: which BERT.
        width: of its word and sentence features.
        vocabulary_size: number of token ids, 0 being padding.

    Raises:
        ConfigurationError: the extra is not installed, a file is damaged, or sizes do not fit.
    """
    if find_spec("transformers") is None:
        raise ConfigurationError(
            "system.text_encoder.name=bert needs an extra: pip install 't2i-hpc[transformers]'"
        )
    if config.pretrained:
        bert = _pretrained(config, vocabulary_size)
        tokens = {"first": config.first_token, "last": config.last_token}
        return BERTTextEncoder(bert, width, pooling=config.pooling, **tokens)
    if width % config.heads:
        raise ConfigurationError(
            f"system.text_encoder.width={width} cannot be divided by "
            f"system.text_encoder.bert.heads={config.heads}: take e.g. 256 and 8"
        )
    bert, first, last = new_bert(
        vocabulary_size,
        width,
        layers=config.layers,
        heads=config.heads,
        feed_forward=config.feed_forward,
        dropout=config.dropout,
    )
    return BERTTextEncoder(bert, width, first=first, last=last, pooling=config.pooling)


def _pretrained(config: BERTConfig, vocabulary_size: int) -> BertModel:
    key, path = "system.text_encoder.bert.pretrained", Path(config.pretrained)
    if path.name != "model.safetensors":
        raise ConfigurationError(
            f"{key}={path} must be the file model.safetensors of a BERT, with config.json beside it"
        )
    try:
        read = reads_initial_weights("text_encoder")
        build = pretrained_bert if read else untrained_bert
        bert = build(path.parent)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"{key}={path} cannot be loaded: {reason}") from error
    pieces = bert.config.vocab_size
    if pieces != vocabulary_size:
        raise ConfigurationError(
            f"{key}={path} knows {pieces:,} word pieces, the data has {vocabulary_size:,} tokens: "
            f"name its tokenizer, data.tokenizer={path.with_name('tokenizer.json')}"
        )
    return bert


def build_images_encoder(config: ImageEncoderConfig, width: int) -> ImageEncoder:
    """Build DAMSM's image encoder.

    Raises:
        ConfigurationError: Inception without weights: they are in no package; batch statistics
            of a network without batch norms.
    """
    unnamed = config.name == "inception_v3" and not config.weights
    if unnamed and reads_initial_weights("image_encoder"):
        raise ConfigurationError(
            "system.image_encoder.weights is empty, and Inception-v3's weights are in no "
            "package: name a safetensors file, take system.image_encoder.name="
            "efficientnet_lite0, or leave DAMSM out with system.damsm.weight=0"
        )
    check_side(config)
    try:
        encoder = build_image_encoder(
            config.name,
            width,
            align_corners=config.align_corners,
            batch_statistics=config.batch_statistics,
            side=config.side,
        )
    except ValueError as error:
        raise ConfigurationError(f"system.image_encoder.batch_statistics: {error}") from error
    if config.weights:
        load_weights(encoder, Path(config.weights), "system.image_encoder.weights")
    return encoder


def check_side(config: ImageEncoderConfig) -> None:
    """Refuse another side of the images for a network that has one alone.

    Raises:
        ConfigurationError: there is one.
    """
    if config.side is not None and config.name != "efficientnet_lite0":
        raise ConfigurationError(
            f"system.image_encoder.side={config.side} is for efficientnet_lite0: leave it out with "
            f"system.image_encoder.name={config.name}"
        )


def damsm_terms(
    images: Tensor, encoder: ImageEncoder, text: TextFeatures, batch: Batch, config: DAMSMConfig
) -> dict[str, Tensor]:
    """Return DAMSM's losses of images in [-1, 1] with the batch's captions, in float32 at least."""
    settings = DAMSMSettings(
        config.gamma1, config.gamma2, config.gamma3, config.root, config.terms, config.chunk
    )
    features = encoder(images)
    words, sentence = (at_least_float32(value) for value in text)
    regions, code = (at_least_float32(value) for value in features)
    lengths = to_device(batch.lengths, images.device)
    captions = Captions(words, lengths, sentence, batch.classes)
    with torch.autocast(images.device.type, enabled=False):
        return damsm_losses(regions, code, captions, settings)


def as_terms(losses: dict[str, Tensor], prefix: str, weight: float) -> dict[str, Term]:
    """Give each loss a name and the same weight."""
    return {prefix + name: Term(value, weight) for name, value in losses.items()}


def scale_images(images: Tensor) -> Tensor:
    """Map uint8 images of any memory format to contiguous float32 in [-1, 1]."""
    return images.to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1.0


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Build graphs through a module without its own gradients, which nobody would use."""
    if torch.compiler.is_compiling():  # there it is given what needs a gradient
        values = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
        with torch.nn.utils.stateless._reparametrize_module(module, values):
            yield
        return
    with without_gradient([p for p in module.parameters() if p.requires_grad]):
        yield


@contextmanager
def without_gradient(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let parameters that need a gradient need none."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def checkpoint_follows(networks: Collection[str] = (_ALL,)) -> Iterator[None]:
    """Build systems without reading initial weights that a checkpoint will overwrite.

    Args:
        networks: that it holds; left out: all.
    """
    token = _FOLLOWING.set(_FOLLOWING.get() | {*networks})
    try:
        yield
    finally:
        _FOLLOWING.reset(token)


@contextmanager
def outlining() -> Iterator[None]:
    """Build systems without reading initial weights, but refuse those whose weights are unknown."""
    with checkpoint_follows([_NONE_YET]):
        yield


def reads_initial_weights(network: str = "") -> bool:
    """Whether a network's initial weights must be read from their files."""
    return _FOLLOWING.get().isdisjoint((_ALL, _NONE_YET, network))


def is_given(network: str) -> bool:
    """Whether a checkpoint will give a network's weights."""
    return not _FOLLOWING.get().isdisjoint((_ALL, network))


def load_weights(module: nn.Module, path: Path, key: str) -> None:
    """Load a safetensors file of initial weights strictly; nothing where a checkpoint follows.

    Args:
        module: gets them.
        path: the file.
        key: the setting that names it, ``system.<network>.weights``.

    Raises:
        ConfigurationError: the file is missing, damaged or of other shapes.
    """
    if not reads_initial_weights(key.split(".")[1]):
        return
    try:
        weights = load_file(path)
        if isinstance(module, ImageEncoder):
            _compare_sides(module, weights, path)
        module.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigurationError(f"{key}={path} cannot be loaded: {reason}") from error


def _compare_sides(encoder: ImageEncoder, weights: Mapping[str, Tensor], path: Path) -> None:
    given, trained = side_of(encoder.state_dict()), side_of(weights)
    if given != trained:
        asked = f"give system.image_encoder.side={trained}" if trained else "leave it out"
        raise ConfigurationError(
            f"system.image_encoder.weights={path} was trained at {trained or 'its own'} px, not at "
            f"system.image_encoder.side={given or ''}: {asked}"
        )


def check_text_encoder(config: SystemConfig, vocabulary: str) -> None:
    """Refuse a text encoder whose weights were trained with another vocabulary.

    Args:
        config: of the system.
        vocabulary: SHA-256 of the data's vocabulary or tokenizer.

    Raises:
        RunError: names the file and what to do.
        ConfigurationError: the file cannot be read.
    """
    text_encoder = getattr(config, "text_encoder", None)  # a user-defined system may have none
    if not isinstance(text_encoder, TextEncoderConfig) or not text_encoder.weights:
        return
    key, path = "system.text_encoder.weights", Path(text_encoder.weights)
    check_same_words(
        f"{key}={path}",
        vocabulary_of(path, key),
        vocabulary,
        "name the encoder that was trained "
        "on this data, or build the shards with vocabulary= of the data that it was trained on",
    )


def check_caption_length(modules: Mapping[str, nn.Module], tokens: int, key: str) -> None:
    """Refuse captions of more tokens than a system's text encoder reads.

    Args:
        modules: of the system.
        tokens: most of a caption.
        key: the setting that says so.

    Raises:
        ConfigurationError: the encoder reads fewer.
    """
    # A user-defined encoder may not say.
    most = getattr(modules.get("text_encoder"), "max_tokens", None)
    if most is not None and tokens > most:
        raise ConfigurationError(
            f"{key}={tokens}: the text encoder reads {most} tokens of a caption at most, so set "
            f"{key}={most}"
        )


def vocabulary_of(path: Path, key: str) -> str:
    """Return the SHA-256 of the vocabulary that a safetensors file names; empty: it names none.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    return notes_of(path, key).get(VOCABULARY_NOTE, "")


def notes_of(path: Path, key: str) -> dict[str, str]:
    """Return the notes in a safetensors file that the setting `key` names.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            return {str(name): str(note) for name, note in (opened.metadata() or {}).items()}
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigurationError(f"{key}={path} cannot be loaded: {reason}") from error
