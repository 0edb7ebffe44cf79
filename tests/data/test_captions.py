"""Tokenization and vocabulary: the reference's rules, on its own hard cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.captions import Vocabulary, encode_caption, pad, select_tokens, tokenize


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A small Bird, with-a long_bill!", ["a", "small", "bird", "with", "a", "long_bill"]),
        ("the bird's wing\ufffd\ufffdis red", ["the", "bird", "s", "wing", "is", "red"]),
        ("one\ufffdtwo", ["one", "two"]),
        ("a caf\u00e9 in M\u00fcnchen", ["a", "caf", "in", "mnchen"]),
        ("\u9ce5 flies", ["flies"]),
        ("  \t\n ", []),
        ("3 x 4.5", ["3", "x", "4", "5"]),
    ],
)
def test_tokenize(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


@given(st.text())
def test_words_are_never_empty_and_ascii(text: str) -> None:
    assert all(word and word.isascii() for word in tokenize(text))


def test_words_are_numbered_in_order_of_first_appearance() -> None:
    vocabulary = Vocabulary.from_captions(["a red bird", "A blue bird sings"])
    assert vocabulary.words == ("<end>", "a", "red", "bird", "blue", "sings")
    assert vocabulary.size == 6
    assert vocabulary.encode("the blue, blue Bird!") == [4, 4, 3]
    assert vocabulary.unknown("the blue heron") == ["the", "heron"]


def test_the_padding_word_is_no_word_of_a_caption() -> None:
    vocabulary = Vocabulary(["end", "a"])
    assert vocabulary.encode("end a") == [1]


def test_saved_and_loaded(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_captions(["a red bird"])
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded.words == vocabulary.words
    assert loaded.sha256 == vocabulary.sha256
    assert loaded.sha256 != Vocabulary.from_captions(["a bird, red"]).sha256


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"format": 2, "words": ["<end>", "a"]}',
        '{"format": 1, "words": "abc"}',
        '{"format": 1, "words": ["a", "b"]}',
        '{"format": 1, "words": ["<end>", "a", "a"]}',
        '{"format": 1, "words": ["<end>", 3]}',
        '{"format": 1, "words": []}',
    ],
)
def test_damaged_vocabularies_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"vocabulary\.json"):
        Vocabulary.load(path)


def test_a_missing_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no vocabulary .*t2i_hpc\.shards"):
        Vocabulary.load(tmp_path / "vocabulary.json")


@given(st.lists(st.integers(1, 99), max_size=30), st.integers(1, 30), st.integers(0, 9))
def test_selected_tokens_are_a_subset_in_order(ids: list[int], longest: int, seed: int) -> None:
    selected = select_tokens(ids, longest, np.random.default_rng(seed))
    assert len(selected) == min(longest, len(ids))
    rest = iter(ids)
    assert all(word in rest for word in selected)  # consumes `rest`: the order is kept


def test_every_word_of_a_long_caption_is_selected_sometimes() -> None:
    chosen = {
        word
        for seed in range(200)
        for word in select_tokens(range(1, 31), 18, np.random.default_rng(seed))
    }
    assert chosen == set(range(1, 31))


def test_a_caption_without_known_words_is_one_padding_token() -> None:
    vocabulary = Vocabulary.from_captions(["a bird"])
    assert encode_caption("?!", vocabulary, 5, (0, "words", 0)) == [0]


def test_padding() -> None:
    tokens, lengths = pad([[3, 1], [2, 2, 2]], 4)
    assert tokens.tolist() == [[3, 1, 0, 0], [2, 2, 2, 0]]
    assert lengths.tolist() == [2, 3]
    assert tokens.dtype == lengths.dtype == np.int64
