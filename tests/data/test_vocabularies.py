"""Vocabularies made before the splits, over the captions of all of them, or imported."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.choose_vocabulary import import_vocabulary, make_vocabulary
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.captions import Vocabulary
from tests.support.data import captions_of, make_coco, make_cub, make_image_folder


def texts(*numbers: int) -> list[str]:
    return [text for number in numbers for text in captions_of(number)]


def test_words_of_several_sources_in_the_order_given(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "a", range(5, 7)) / "metadata.jsonl"
    other = make_image_folder(tmp_path / "b", range(2, 3), metadata=False)
    for place, (sources, expected) in enumerate(
        [([folder, other], texts(5, 6, 2)), ([other, folder], texts(2, 5, 6))]
    ):
        output = tmp_path / f"out{place}"
        made = make_vocabulary(output, sources)
        assert made.words == Vocabulary.from_captions(expected).words
        assert Vocabulary.load(output / "vocabulary.json").words == made.words


def test_the_words_of_one_source_are_those_of_its_split(tmp_path: Path) -> None:
    images, captions = make_coco(tmp_path / "in", 4)
    make_vocabulary(tmp_path / "made", [captions])
    build_split(
        ShardsConfig(
            source="coco", images=str(images), captions=str(captions), output=str(tmp_path / "out")
        )
    )
    written = [(tmp_path / name / "vocabulary.json").read_bytes() for name in ("made", "out")]
    assert written[0] == written[1]


def test_cubs_captions(tmp_path: Path) -> None:
    _, captions = make_cub(tmp_path / "in")
    made = make_vocabulary(tmp_path / "out", [captions])
    # Folders by name: 001. (images 0 and 1), 002. (2, 3), 024. (4, 5)... as make_cub draws them.
    assert set(made.words) == set(Vocabulary.from_captions(texts(*range(6))).words)


def test_a_published_vocabulary_keeps_its_numbers(tmp_path: Path) -> None:
    words = {0: "<end>", 1: "zebra", 2: "a", 3: "red"}
    content = [[[2, 3]], [[1]], words, {word: number for number, word in words.items()}]
    (tmp_path / "captions.pickle").write_bytes(pickle.dumps(content, 2))
    made = import_vocabulary(tmp_path / "out", tmp_path / "captions.pickle")
    assert made.encode("a red zebra") == [2, 3, 1]
    assert Vocabulary.load(tmp_path / "out" / "vocabulary.json").words == tuple(words.values())


def test_a_vocabulary_that_is_there_is_kept(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "a", range(3), metadata=False)
    make_vocabulary(tmp_path / "out", [folder])
    before = (tmp_path / "out" / "vocabulary.json").read_bytes()
    with pytest.raises(DataError, match=r"vocabulary\.json is there already"):
        make_vocabulary(tmp_path / "out", [folder])
    assert (tmp_path / "out" / "vocabulary.json").read_bytes() == before


def test_what_holds_no_captions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "deep.jsonl").write_text("[" * 200_000)
    (tmp_path / "file").write_text("")
    for name, message in {
        "empty": "holds no captions: name ",
        "deep.json": "is not readable JSON",
        "deep.jsonl": "line 1 .* is not readable JSON",
        "none.json": "cannot read .*none.json, a captions file",
        "a.pickle": "a.pickle is a pickle: use source=pickles",
    }.items():
        with pytest.raises(DataError, match=message):
            make_vocabulary(tmp_path / "out", [tmp_path / name])
    folder = make_image_folder(tmp_path / "a", range(3), metadata=False)
    with pytest.raises(DataError, match=r"cannot write .*file/vocabulary\.json"):
        make_vocabulary(tmp_path / "file", [folder])


def test_half_letters_in_captions_are_stored(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "in", range(2))
    rows = [{"file_name": f"000{n}.png", "text": "a \ud800 circle"} for n in range(2)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ShardsConfig(images=str(folder), output=str(tmp_path / "out"))
    assert build_split(config).manifest.sample_count == 2


def test_names_that_cannot_be_shown_are_left_out(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "in", range(2), metadata=False)
    for suffix in (".png", ".txt"):
        (folder / f"0001{suffix}").rename(folder / f"a\nb{suffix}")
    config = ShardsConfig(images=str(folder), output=str(tmp_path / "out"))
    built = build_split(config)
    assert (built.rejected, built.manifest.sample_count) == (1, 1)
    assert "unprintable name: 1" in str(built)
