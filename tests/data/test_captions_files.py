"""Captions and layouts as data sets come: one file of any form, or texts in another folder."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.choose_vocabulary import make_vocabulary
from t2i_hpc.data.build.sources.captions_files import read_rows
from t2i_hpc.data.build.split_writer import build_splits, check_source
from t2i_hpc.data.captions import UNICODE, Vocabulary, tokenize
from t2i_hpc.data.split import Split
from tests.support.data import image_bytes, problems, read_source

TWO = {"a/0.jpg": ("one", "a, second"), "1.jpg": ("two",)}
KARPATHY = {
    "images": [
        {"filename": "0.jpg", "filepath": "a", "split": "train", "sentences": [{"raw": "one"}]},
        {"filename": "1.jpg", "split": "test", "sentences": [{"raw": "two", "tokens": ["two"]}]},
        {"filename": "2.jpg", "split": "restval", "sentences": [{"raw": "three"}]},
    ]
}
FILES: dict[str, tuple[str, str]] = {
    "JSON lines": (
        "m.jsonl",
        '\ufeff{"file_name": "a/0.jpg", "captions": ["one", "a, second"]}\r\n'
        '{"image": "1.jpg", "caption": "two"}\n',
    ),
    "JSON lines of another name": (
        "m.json",
        '{"file_name": "a/0.jpg", "text": "one"}\n{"file_name": "a/0.jpg", "text": "a, second"}\n'
        '{"file_name": "1.jpg", "TEXT": "two"}\n',
    ),
    "a list": (
        "m.json",
        json.dumps(
            [
                {"image": "a/0.jpg", "caption": ["one", "a, second"], "image_id": "x_0"},
                {"image": "1.jpg", "caption": "two"},
            ]
        ),
    ),
    "by name": ("m.json", json.dumps({"a/0.jpg": ["one", "a, second"], "1.jpg": "two"})),
    "COCO with folders and ids of letters": (
        "m.json",
        json.dumps(
            {
                "images": [{"id": "x", "file_name": "a/0.jpg"}, {"id": 7, "file_name": "1.jpg"}],
                "annotations": [
                    {"image_id": "x", "caption": "one"},
                    {"image_id": "7", "caption": "two"},
                    {"image_id": "x", "caption": "a, second"},
                ],
            }
        ),
    ),
    "CSV": ("m.csv", 'image,caption\r\na/0.jpg,one\r\na/0.jpg,"a, second"\r\n1.jpg,two\r\n'),
    "TSV": ("m.tsv", 'filename\tcaption\na/0.jpg\tone\na/0.jpg\t"a, second"\n1.jpg\ttwo\n'),
    "TSV without header": ("m.tsv", "a/0.jpg\tone\na/0.jpg\ta, second\n1.jpg\ttwo\n"),
    "Flickr30k": (
        "results.csv",
        "image_name| comment_number| comment\na/0.jpg| 0| one\na/0.jpg| 1| a, second\n"
        "1.jpg| 0| two\n",
    ),
    "Flickr8k": ("token.txt", "a/0.jpg#0\tone\na/0.jpg#1\ta, second\n1.jpg#0\ttwo\n"),
    "Flickr8k, edited": ("token.txt", "a/0.jpg#0 one\na/0.jpg#1\ta, second\n1.jpg#0 two\n"),
}


def images_at(folder: Path, *names: str) -> Path:
    for place, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(place, "JPEG"))
    return folder


@pytest.mark.parametrize("source", ["folder", "coco"])
@pytest.mark.parametrize("form", FILES)
def test_forms_of_captions_files(tmp_path: Path, form: str, source: str) -> None:
    name, content = FILES[form]
    images = images_at(tmp_path / "in", *TWO)
    path = tmp_path / name
    path.write_text(content, newline="")
    samples = read_source(source, images, path)
    found = {str(sample.path.relative_to(images)): sample.captions for sample in samples}
    assert found == TWO
    assert all(sample.unfit is None for sample in samples)
    assert [sample.key for sample in samples] == (
        list(TWO) if source == "folder" else [name.removesuffix(".jpg") for name in TWO]
    )
    words = make_vocabulary(tmp_path / "out", [path])
    assert set(words.words) == {"<end>", "one", "a", "second", "two"}


def test_karpathys_splits(tmp_path: Path) -> None:
    images = images_at(tmp_path / "in", "a/0.jpg", "1.jpg", "2.jpg")
    path = tmp_path / "dataset_x.json"
    path.write_text(json.dumps(KARPATHY))
    keys = {
        split: [s.key for s in read_source("coco", images, path, split) if s.unfit is None]
        for split in ("train", "test", "all")
    }
    assert keys == {"train": ["0", "2"], "test": ["1"], "all": ["0", "1", "2"]}
    with pytest.raises(DataError, match="has the splits restval, test, train: split=val is none"):
        read_source("coco", images, path, "val")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.tsv"])
def test_metadata_beside_images(tmp_path: Path, name: str) -> None:
    images = images_at(tmp_path / "in", "0.jpg", "1.jpg")
    content = {
        "jsonl": '{"file_name": "0.jpg", "caption": "one", "class": 4}\n'
        '{"file_name": "1.jpg", "text": "b"}',
        "csv": 'file_name,text,class\n0.jpg,"one\n",4.0\n1.jpg,b,\n',
        "tsv": "file_name\ttext\tclass\n0.jpg\tone\t4\n1.jpg\tb\t\n",
    }
    (images / name).write_text(content[name.partition(".")[2]])
    samples = read_source("folder", images)
    assert [(s.key, s.captions, s.class_id) for s in samples] == [
        ("0.jpg", ("one",), 4),
        ("1.jpg", ("b",), 5),
    ]
    (images / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=rf"{name} and metadata.parquet: name one with captions="):
        read_source("folder", images)


def test_names_of_classes_are_numbered(tmp_path: Path) -> None:
    images = images_at(tmp_path / "in", "0.jpg", "1.jpg", "2.jpg", "3.jpg")
    rows = ["file_name,text,class", "0.jpg,a,dog", "1.jpg,a,2", "2.jpg,a,cat", "3.jpg,a,dog"]
    (images / "metadata.csv").write_text("\n".join(rows))
    assert [sample.class_id for sample in read_source("folder", images)] == [4, 2, 3, 4]


def literature(folder: Path) -> Path:
    """The layout that people ask for most: images/, text/, train/filenames.pickle, no captions."""
    names = [f"s.1/{n}" for n in range(6)]
    images_at(
        folder / "images", *[f"{name}.{'png' if n % 2 else 'jpg'}" for n, name in enumerate(names)]
    )
    for name in names:
        path = folder / "text" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"a person {name}\nshe smiles\n")
    for split, chosen in (("train", names[:4]), ("test", names[4:])):
        (folder / split).mkdir()
        (folder / split / "filenames.pickle").write_bytes(pickle.dumps(chosen, 2))
    return folder


@pytest.mark.parametrize("source", ["folder", "pickles"])
def test_texts_in_another_folder_with_lists_of_names(tmp_path: Path, source: str) -> None:
    root = literature(tmp_path / "faces")
    test = read_source(source, root / "images", root / "text", "test")
    assert [sample.key for sample in test] == ["s.1/4", "s.1/5"]
    assert test[0].captions == ("a person s.1/4", "she smiles")
    (root / "train" / "class_info.pickle").write_bytes(pickle.dumps([9, 9, 8, 8], 2))
    train = read_source("pickles", root / "images", root / "text")
    assert [sample.class_id for sample in train] == [9, 9, 8, 8]


def test_texts_in_another_folder(tmp_path: Path) -> None:
    root = literature(tmp_path / "faces")
    assert len(read_source("folder", root / "images", root / "text", "all")) == 6
    with pytest.raises(DataError, match=r"has the splits test, train .*split=val is none of them"):
        read_source("folder", root / "images", root / "text", "val")
    (root / "train" / "filenames.pickle").unlink()
    (root / "test" / "filenames.pickle").unlink()
    (root / "text" / "s.1" / "3.txt").unlink()
    assert re.search(
        r"1 no caption: there is no caption file .*text/s.1/3.txt",
        problems("folder", root / "images", root / "text"),
    )


def test_files_as_users_put_them_beside_images(tmp_path: Path) -> None:
    images = images_at(tmp_path / "in", "a.jpg", "b.JPG", ".hidden/c.jpg")
    for name, text in {
        "a.TXT": "\ufeffone\r\ntwo\u0085three\r\n",
        "b.json": '{"caption": "b"}',
        "README.txt": "about",
        "LICENSE": "x",
        "._a.jpg": "x",
        "__MACOSX/a.jpg": "x",
    }.items():
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_text(text, newline="")
    samples = read_source("folder", images)
    assert [(s.key, s.captions, s.unfit) for s in samples] == [
        ("a.jpg", ("one", "two\u0085three"), None),
        ("b.JPG", ("b",), None),
    ]


REFUSED = {
    "m.json": ('{"a": 1}', "is JSON of a form that is not known: name JSON lines or a list"),
    "i.json": (
        '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}',
        "is COCO's file of objects .instances., which has no captions",
    ),
    "m.csv": ("who,what\na,b\n", "names the columns who, what: one must be file_name or"),
    "q.csv": ('image,caption\na.jpg,"b\n', "line 2 of .*q.csv is not readable CSV"),
    "e.csv": (" \n", "e.csv is empty"),
    "n.txt": ("some words", "is no captions file of a form that is known"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_is_read(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as refused:
        read_rows(tmp_path / name)
    assert not re.search("Error|Exception", str(refused.value))


def parquet_at(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("source", ["folder", "coco"])
def test_parquet_has_the_rules_of_other_captions_files(tmp_path: Path, source: str) -> None:
    images = images_at(tmp_path / "split=x" / "in", "a/0.jpg", "1.jpg", "2.jpg")
    path = parquet_at(  # in a folder that other readers take for a column
        tmp_path / "split=x" / "m.parquet",
        File_Name=pyarrow.array(["a/0.jpg", "1.jpg", "2.jpg", "a/0.jpg"]).dictionary_encode(),
        caption=[["one", "a, second"], ["two\u0085"], None, ["third"]],
        picture=[b"\xff\xd8"] * 4,
    )
    samples = read_source(source, images, path)
    assert [sample.captions for sample in samples] == [("one", "a, second", "third"), ("two",), ()]
    assert [sample.unfit.kind for sample in samples if sample.unfit] == ["no caption"]
    words = make_vocabulary(tmp_path / "out", [path])
    assert set(words.words) == {"<end>", "one", "a", "second", "third", "two"}
    german = parquet_at(tmp_path / "key.parquet", image=["a/0.jpg"], text=["one"], DE=["eins"])
    assert [row.captions for row in read_rows(german, "de")] == [("eins",)]


def test_metadata_parquet_beside_images_is_built(tmp_path: Path) -> None:
    images = images_at(tmp_path / "in", "0.jpg", "1.jpg", "2.jpg")
    parquet_at(
        images / "metadata.parquet",
        file_name=["1.jpg", "0.jpg", "2.jpg"],
        text=["b", "one", "c"],
        **{"class": [4.0, None, float("nan")]},  # pandas' numbers where some are missing
    )
    (built,) = build_splits(ShardsConfig(images=str(images), output=str(tmp_path / "out")))
    split = Split.open(DataConfig(path=str(tmp_path / "out")), "train")
    found = [split.sample(number) for number in range(built.manifest.sample_count)]
    assert [(one.key, one.captions, one.class_id) for one in found] == [
        ("1.jpg", ("b",), 4),
        ("0.jpg", ("one",), 5),
        ("2.jpg", ("c",), 6),
    ]


def test_parquet_of_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"cut\.parquet is not readable as parquet"):
        read_rows(tmp_path / "cut.parquet")
    inside = parquet_at(tmp_path / "i.parquet", image=[{"bytes": b"", "path": "a"}], text=["one"])
    with pytest.raises(DataError, match=r"holds the images themselves \(column image\)"):
        read_rows(inside)
    urls = parquet_at(tmp_path / "u.parquet", url=["http://a/b.jpg"], caption=["one"])
    with pytest.raises(DataError, match="has the columns url, caption: one must be file_name or"):
        read_rows(urls)


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_at(tmp_path / "in", "0.jpg")
    parquet_at(images / "metadata.parquet", file_name=["0.jpg"], text=["one"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 't2i-hpc\[parquet\]'"):
        read_source("folder", images)


LANGUAGES = {
    "\u4e00\u53ea\u9e1f bird": ["\u4e00", "\u53ea", "\u9e1f", "bird"],
    "\u9e1fbird2\u9e1f": ["\u9e1f", "bird2", "\u9e1f"],
    "\u041a\u0440\u0430\u0441\u043d\u0430\u044f, \u043f\u0442\u0438\u0446\u0430!": [
        "\u043a\u0440\u0430\u0441\u043d\u0430\u044f",
        "\u043f\u0442\u0438\u0446\u0430",
    ],
    "\u0932\u093e\u0932 \u091a\u093f\u0921\u093c\u093f\u092f\u093e": [
        "\u0932\u093e\u0932",
        "\u091a\u093f\u0921\u093c\u093f\u092f\u093e",
    ],
    "cafe\u0301": ["caf\u00e9"],
}


@pytest.mark.parametrize("text", LANGUAGES)
def test_words_of_every_language(text: str) -> None:
    assert tokenize(text, UNICODE) == LANGUAGES[text]


def folder_of(tmp_path: Path, *captions: str) -> ShardsConfig:
    images = images_at(tmp_path / "in", *[f"{n}.jpg" for n in range(len(captions))])
    for number, caption in enumerate(captions):
        (images / f"{number}.txt").write_text(caption)
    return ShardsConfig(images=str(images), output=str(tmp_path / "out"), workers=0)


def test_captions_that_a_training_would_not_read(tmp_path: Path) -> None:
    config = folder_of(tmp_path, "\u9e1f", "\u043f\u0442\u0438\u0446\u0430")
    with pytest.raises(DataError, match=r"2 of 2 captions have no word .* letters=unicode keeps"):
        build_splits(config)
    config.letters = UNICODE
    (built,) = build_splits(config)
    split = Split.open(DataConfig(path=config.output), "train")
    assert split.vocabulary.letters == UNICODE
    assert split.vocabulary.encode("\u9e1f") == [1]
    assert Vocabulary.load(tmp_path / "out" / "vocabulary.json").sha256 == split.vocabulary.sha256
    assert "no word" not in str(built)
    mixed = folder_of(tmp_path / "b", "a bird", "\u9e1f")
    (built,) = build_splits(mixed)
    assert "1 of 2 captions have no word of the vocabulary and are read as empty" in str(built)


def test_a_fraction_is_held_out_by_name(tmp_path: Path) -> None:
    config = folder_of(tmp_path, *[f"bird {n}" for n in range(40)])
    config.test_fraction = 0.2
    train, test = build_splits(config)
    assert train.manifest.sample_count + test.manifest.sample_count == 40
    assert 2 <= test.manifest.sample_count <= 16
    keys = {}
    for name in ("train", "test"):
        split = Split.open(DataConfig(path=config.output), name)
        keys[name] = {split.sample(n).key for n in range(split.count)}
    assert not keys["train"] & keys["test"]
    assert split.vocabulary.size == 42  # of both splits
    for number in range(20):
        (Path(config.images) / f"{number}.jpg").unlink()
        (Path(config.images) / f"{number}.txt").unlink()
    config.output = str(tmp_path / "fewer")
    build_splits(config)
    fewer = Split.open(DataConfig(path=config.output), "test")
    assert {fewer.sample(n).key for n in range(fewer.count)} <= keys["test"]
    config.split = "test"
    with pytest.raises(DataError, match="test_fraction= holds out the split test"):
        build_splits(config)


def test_too_many_unfit_samples_are_reported_before_a_job_is_submitted(tmp_path: Path) -> None:
    config = folder_of(tmp_path, "", "", "a bird")
    with pytest.raises(DataError, match=r"2 of 3 samples cannot be used, more than the 1 of max_"):
        check_source(config)
