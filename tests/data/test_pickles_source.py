"""The pickles of this literature: read, checked against each other, and their words kept."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.captions import Vocabulary, tokenize
from t2i_hpc.data.split import Split
from tests.support.data import captions_of, image_bytes, make_cub, problems, read_source

KEYS = {"train": ["b/0001", "a/0000", "b/0002"], "test": ["c/0003"]}
EACH = 3


def number_of(key: str) -> int:
    return int(key[-4:])


def write(path: Path, value: Any, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol))


def make_pickles(folder: Path, keys: dict[str, list[str]] = KEYS) -> tuple[Path, Path]:
    """Write the layout; returns the folder of images and captions.pickle."""
    texts = {split: [t for k in keys[split] for t in captions_of(number_of(k))] for split in keys}
    words = ["<end>", *sorted({w for rows in texts.values() for t in rows for w in tokenize(t)})]
    numbers = {word: number for number, word in enumerate(words)}
    captions = [[[numbers[w] for w in tokenize(t)] for t in texts[s]] for s in ("train", "test")]
    write(folder / "captions.pickle", [*captions, dict(enumerate(words)), numbers])
    for split, chosen in keys.items():
        write(folder / split / "filenames.pickle", chosen, 0)
        for key in chosen:
            path = folder / "images" / f"{key}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(number_of(key), "JPEG", 60, 48))
    return folder / "images", folder / "captions.pickle"


@pytest.mark.parametrize("split", ["train", "test"])
def test_keys_captions_and_running_classes(tmp_path: Path, split: str) -> None:
    images, captions = make_pickles(tmp_path)
    samples = read_source("pickles", images, captions, split)
    assert [sample.key for sample in samples] == KEYS[split]
    assert [sample.class_id for sample in samples] == list(range(len(samples)))
    for sample in samples:
        expected = [" ".join(tokenize(text)) for text in captions_of(number_of(sample.key))]
        assert list(sample.captions) == expected
        assert (sample.path, sample.box) == (images / f"{sample.key}.jpg", None)


def test_classes_and_sentences(tmp_path: Path) -> None:
    images, captions = make_pickles(tmp_path)
    write(tmp_path / "train" / "class_info.pickle", [7, 5, 7])
    for key in KEYS["train"]:
        path = tmp_path / "text" / f"{key}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join([*captions_of(number_of(key)), "one more than K"]))
    samples = read_source("pickles", images, captions)
    assert [sample.class_id for sample in samples] == [7, 5, 7]
    for sample in samples:
        assert list(sample.captions) == captions_of(number_of(sample.key))


def test_cubs_birds_get_their_boxes(tmp_path: Path) -> None:
    root, texts = make_cub(tmp_path)
    cub = read_source("cub", root, texts)
    _, captions = make_pickles(
        tmp_path / "pickles", {"train": [sample.key for sample in cub], "test": ["x/0000"]}
    )
    samples = read_source("pickles", root / "images", captions)
    assert [(s.key, s.path, s.box) for s in samples] == [(s.key, s.path, s.box) for s in cub]
    (root / "bounding_boxes.txt").write_text("3 1 1 1 1\n")
    with pytest.raises(DataError, match=r"3 images have no box in .*CUB_200_2011"):
        read_source("pickles", root / "images", captions)


def test_a_split_has_the_words_of_the_pickle(tmp_path: Path) -> None:
    images, captions = make_pickles(tmp_path / "in")
    for split in ("train", "test"):
        config = ShardsConfig(
            source="pickles",
            images=str(images),
            captions=str(captions),
            output=str(tmp_path / "out"),
            split=split,
        )
        build_split(config)
    opened = Split.open(DataConfig(path=config.output), "test")
    content = pickle.loads(captions.read_bytes())
    assert opened.vocabulary.words == tuple(content[2].values())
    for place, text in enumerate(opened.sample(0).captions):
        assert opened.vocabulary.encode(text) == content[1][place]


def test_a_folder_of_other_words_is_refused(tmp_path: Path) -> None:
    images, captions = make_pickles(tmp_path / "in")
    Vocabulary.from_captions(["a red circle"]).save(tmp_path / "out" / "vocabulary.json")
    config = ShardsConfig(
        source="pickles", images=str(images), captions=str(captions), output=str(tmp_path / "out")
    )
    with pytest.raises(DataError, match=r"has other words than .*captions\.pickle"):
        build_split(config)


Change = Callable[[list[Any]], Any]


def changed(change: Change) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "captions.pickle"
        content = pickle.loads(path.read_bytes())
        write(path, change(content) or content)

    return apply


def shared(content: list[Any]) -> list[Any]:
    """A million captions of a million words in three megabytes."""
    return [[[1] * 1_000_000] * 900_000, *content[1:]]


def keys(*names: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder / "train" / "filenames.pickle", list(names))


def classes(value: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder / "train" / "class_info.pickle", value)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no pickle": (lambda folder: (folder / "captions.pickle").unlink(), "there is no file"),
    "no keys": (
        lambda folder: (folder / "train" / "filenames.pickle").unlink(),
        "cannot read .*filenames.pickle, the keys of a split's images: No such file",
    ),
    "a cut pickle": (
        lambda folder: (folder / "captions.pickle").write_bytes(b"\x80\x02]q\x00(]q\x01(K"),
        "captions.pickle, captions and words of this literature, cannot be read as a pickle",
    ),
    "a program": (
        changed(lambda content: [*content[:3], print]),
        "the name __builtin__.print is not allowed",
    ),
    "three parts": (changed(lambda content: content[:3]), "it is no list of four"),
    "no list": (changed(lambda _: {"a": 1}), "it is no list of four"),
    "captions of words": (
        changed(lambda content: content[0][1].append("a")),
        "a number that is no word's",
    ),
    "a number too high": (
        changed(lambda content: content[1][0].append(len(content[2]))),
        "a number that is no word's",
    ),
    "a number below 0": (
        changed(lambda content: content[1][0].append(-1)),
        "a number that is no word's",
    ),
    "true": (changed(lambda content: content[1][0].append(True)), "a number that is no word's"),
    "no captions": (changed(lambda content: [3, *content[1:]]), "its captions are no list"),
    "a caption that is none": (changed(lambda content: content[0].append(3)), "no list of word"),
    "endless captions": (changed(shared), "its captions are longer than the file"),
    "a gap in the words": (
        changed(lambda content: content[2].pop(4) and None),
        "not numbered from 0 on",
    ),
    "words twice": (changed(lambda content: content[2].update({3: "a", 4: "a"})), "not different"),
    "half a letter": (changed(lambda content: content[2].update({3: "\ud800"})), "printable"),
    "no padding": (changed(lambda content: content[2].update({0: "zzz"})), "its word 0 is not"),
    "a caption too few": (
        changed(lambda content: content[0].pop() and None),
        "8 captions cannot belong to 3 images",
    ),
    "an image without words": (
        changed(lambda content: [[[0]] * 9, *content[1:]]),
        "3 no caption: .* has no words for b/0001",
    ),
    "no keys in the list": (keys(), "is no list of keys"),
    "keys that are numbers": (keys("b/0001", 3, "b/0002"), "keys that are no printable strings"),
    "the same key twice": (keys("b/0001", "b/0001", "b/0002"), "keys more than once"),
    "a key that leads out": (
        keys("b/0001", "../x", "b/0002"),
        "1 keys of .* lead outside the folder of images, the first is ../x",
    ),
    "an image missing": (
        keys("b/0001", "b/0009", "b/0002"),
        "1 missing image file: there is no image .*b/0009",
    ),
    "classes of others": (classes([1, 2]), "2 classes for 3 images"),
    "classes of words": (classes(["1", "2", "3"]), "no list of whole numbers"),
    "sentences missing": (
        lambda folder: (folder / "text").mkdir(),
        "3 no caption: there is no caption file .*text",
    ),
    "no images": (lambda folder: shutil.rmtree(folder / "images"), "there is no folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    images, captions = make_pickles(tmp_path)
    harm, message = DAMAGE[damage]
    harm(tmp_path)
    assert re.search(message, problems("pickles", images, captions))


def test_another_split_is_refused(tmp_path: Path) -> None:
    images, captions = make_pickles(tmp_path)
    with pytest.raises(DataError, match="split=val is not in the pickles"):
        read_source("pickles", images, captions, "val")
