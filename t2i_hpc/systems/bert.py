"""BERT from its configuration; whatever does not fit is refused here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.system import BERTConfig
from t2i_hpc.models.text_encoder import TextEncoder
from t2i_hpc.systems.initial_weights import reads_initial_weights

if TYPE_CHECKING:
    from transformers import BertModel


def build_bert(config: BERTConfig, width: int, vocabulary_size: int) -> TextEncoder:
    """Build the text encoder.

    Args:
        config: which BERT.
        width: of its word and sentence features.
        vocabulary_size: number of word ids, 0 being padding.

    Raises:
        ConfigurationError: the extra is not installed, a file is damaged, or sizes do not fit.
    """
    try:
        from t2i_hpc.models.bert_text_encoder import BERTTextEncoder, new_bert
    except ImportError as error:
        raise ConfigurationError(
            "system.text_encoder.name=bert needs an extra: pip install 't2i-hpc[transformers]'"
        ) from error
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
    from t2i_hpc.models.bert_text_encoder import pretrained_bert, untrained_bert

    key, path = "system.text_encoder.bert.pretrained", Path(config.pretrained)
    if path.name != "model.safetensors":
        raise ConfigurationError(
            f"{key}={path} must be the file model.safetensors of a BERT, with config.json beside it"
        )
    try:
        build = pretrained_bert if reads_initial_weights() else untrained_bert
        bert = build(path.parent)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"{key}={path} cannot be loaded: {reason}") from error
    pieces = bert.config.vocab_size
    if pieces != vocabulary_size:
        raise ConfigurationError(
            f"{key}={path} knows {pieces:,} word pieces, the data has {vocabulary_size:,} words: "
            f"name its tokeniser, data.tokeniser={path.with_name('tokenizer.json')}"
        )
    return bert
