"""Captions tokenized by a pretrained encoder's own rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import WordPieces
from t2i_hpc.data.split import open_vocabulary
from tests.support.bert import minilm_folder

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "bird", "wing", "##bar", "##s", "a")


def write_tokenizer(path: Path, words: tuple[str, ...] = WORDS) -> Path:
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(path))
    return path


def test_pieces_without_special_tokens_padding_or_an_end(tmp_path: Path) -> None:
    pieces = WordPieces.load(write_tokenizer(tmp_path / "tokenizer.json"))
    assert pieces.encode("a bird wingbars") == [8, 4, 5, 6, 7]
    assert [pieces.words[number] for number in pieces.encode("wingbars")] == [
        "wing",
        "##bar",
        "##s",
    ]
    assert pieces.size == len(WORDS)


def test_what_has_no_piece_is_dropped_and_reported(tmp_path: Path) -> None:
    pieces = WordPieces.load(write_tokenizer(tmp_path / "tokenizer.json"))
    assert pieces.encode("a zebra bird") == [8, 4]
    assert pieces.unknown("a zebra bird") == ["zebra"]
    assert pieces.encode("[CLS] bird") == [4]


def test_it_takes_the_place_of_the_shards_vocabulary(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    opened = open_vocabulary(DataConfig(path="demo", tokenizer=str(path)))
    assert opened.encode("a bird") == [8, 4]


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"model": 3}'])
def test_damage_is_reported(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read .*pretrained"):
        WordPieces.load(path)
    with pytest.raises(DataError, match="cannot be read"):
        WordPieces.load(tmp_path / "missing.json")


def test_padding_must_be_number_zero(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json", WORDS[1:] + WORDS[:1])
    with pytest.raises(DataError, match=r"number 0 is '\[UNK\]', where padding must be"):
        WordPieces.load(path)


def test_the_real_one() -> None:
    folder = minilm_folder()
    pieces = WordPieces.load(folder / "tokenizer.json")
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == pieces.size
    found = [pieces.words[number] for number in pieces.encode("Small WINGBARS, flying.")]
    assert found == ["small", "wing", "##bar", "##s", ",", "flying", "."]
