"""Whether weights and data mean the same words by the same token numbers.

A text encoder reads numbers. With another vocabulary of the same size it runs without an error
and reads other words, so weights carry the identity of the vocabulary that they were trained with.
"""

from __future__ import annotations

import logging

from t2i_hpc.common.errors import RunError

VOCABULARY_NOTE = "vocabulary"  # the key in the metadata of a safetensors file
_LOG = logging.getLogger("t2i_hpc")
_told: set[str] = set()


def check_same_words(weights: str, trained_with: str, present: str, advice: str) -> None:
    """Compare the vocabulary that weights were trained with with that of the data.

    Args:
        weights: what they are called in messages.
        trained_with: its SHA-256; empty: not recorded, which is accepted and said once.
        present: SHA-256 of the data's vocabulary or tokenizer; empty: there is none to compare.
        advice: what to do where they differ.

    Raises:
        RunError: they differ.
    """
    if not present or trained_with == present:
        return
    if trained_with:
        raise RunError(
            f"{weights} was trained with another vocabulary than the data has now (SHA-256 "
            f"{trained_with[:12]}…, not {present[:12]}…), so tokens would mean other words: "
            f"{advice}"
        )
    if weights not in _told:
        _told.add(weights)
        _LOG.warning(
            "%s does not record the vocabulary it was trained with: make sure that the data's "
            "vocabulary numbers the words in the same order",
            weights,
        )
