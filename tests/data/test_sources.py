"""Reading the layouts of COCO and CUB, and refusing what does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources import SOURCES
from tests.support.data import (
    SPECIES,
    captions_of,
    image_bytes,
    make_coco,
    make_cub,
    problems,
    read_source,
)


def test_coco(tmp_path: Path) -> None:
    images, captions = make_coco(tmp_path, 4)
    samples = read_source("coco", images, captions)
    assert [sample.key for sample in samples] == [f"{1000 + n:012d}" for n in range(4)]
    assert [sample.class_id for sample in samples] == [0, 1, 2, 3]
    assert [set(sample.captions) for sample in samples] == [set(captions_of(n)) for n in range(4)]
    assert all(sample.path.is_file() and sample.box is None for sample in samples)


def test_coco_with_a_part_of_the_captions(tmp_path: Path) -> None:
    images, captions = make_coco(tmp_path, 4)
    (images / "000000009999.jpg").write_bytes(image_bytes(1, "JPEG"))
    assert len(read_source("coco", images, captions)) == 4


@pytest.mark.parametrize(
    ("split", "species"),
    [("train", SPECIES[1:]), ("test", SPECIES[:1]), ("all", SPECIES)],
)
def test_cub_is_split_by_species(tmp_path: Path, split: str, species: tuple[str, ...]) -> None:
    images, captions = make_cub(tmp_path)
    samples = read_source("cub", images, captions, split)
    assert [sample.key.split("/")[0] for sample in samples] == [s for s in species for _ in "ab"]
    assert {sample.class_id for sample in samples} == {int(name[:3]) for name in species}
    first = samples[0]
    assert first.box == (20.0, 15.0, 30.0, 24.0)
    assert list(first.captions) == captions_of(2 * SPECIES.index(species[0]))


def test_cubs_split_has_the_literatures_species() -> None:
    path = Path(SOURCES["cub"].__code__.co_filename).with_name("cub_species_split.json")
    split = json.loads(path.read_text())
    train, test = set(split["train_species"]), set(split["test_species"])
    assert (len(train), len(test), len(train & test)) == (150, 50, 0)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def remove(*paths: Path) -> None:
    for path in paths:
        path.unlink()


COCO_DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no captions file": (lambda _, captions: remove(captions), "cannot read .*captions_val2017"),
    "cut JSON": (
        lambda _, captions: captions.write_text(captions.read_text()[:200]),
        "captions_val2017.json is not readable JSON",
    ),
    "other JSON": (
        lambda _, captions: captions.write_text("[1]"),
        "no object of .*captions_val2017.json names an image",
    ),
    "no annotations": (
        lambda _, captions: edit(captions, lambda content: content.pop("annotations")),
        "4 no caption: image 1 of .* has no caption for 0",
    ),
    "no images": (
        lambda _, captions: edit(captions, lambda content: content["images"].clear()),
        "lists no images",
    ),
    "two images missing": (
        lambda images, _: remove(*sorted(images.iterdir())[1:3]),
        "2 missing image file: image 1001 of .* names 000000001001.jpg, which is not in",
    ),
    "a caption of a stranger": (
        lambda _, captions: edit(captions, lambda content: content["images"].pop(1)),
        "1 no image: captions of .* to an image that is not listed, 1001",
    ),
    "an image without captions": (
        lambda _, captions: edit(
            captions,
            lambda content: content["images"].append({"id": 1, "file_name": "000000001000.jpg"}),
        ),
        "1 no caption: image 1 of .* has no caption for 000000001000.jpg",
    ),
    "an image outside": (
        lambda _, captions: edit(
            captions, lambda content: content["images"][0].update(file_name="../x.jpg")
        ),
        "names '../x.jpg', outside the folder of images",
    ),
}


@pytest.mark.parametrize("damage", COCO_DAMAGE)
def test_coco_that_does_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    images, captions = make_coco(tmp_path, 4)
    harm, message = COCO_DAMAGE[damage]
    harm(images, captions)
    assert re.search(message, problems("coco", images, captions))


CUB_DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no boxes": (lambda root, _: remove(root / "bounding_boxes.txt"), "bounding_boxes.txt"),
    "a box missing": (
        lambda root, _: (root / "bounding_boxes.txt").write_text("1 1 1 1 1\n"),
        "4 images have no row in .*bounding_boxes.txt, the first is 002",
    ),
    "a box of words": (
        lambda root, _: (root / "bounding_boxes.txt").write_text("3 a b c d\n"),
        "a box that is no number",
    ),
    "a class of words": (
        lambda root, _: (root / "image_class_labels.txt").write_text("3 a\n4 1\n5 1\n6 1\n"),
        "the class 'a', no number",
    ),
    "a cut row": (
        lambda root, _: (root / "images.txt").write_text("1 a/b.jpg\n2\n"),
        "line 2 of .*images.txt has 1 words instead of 2",
    ),
    "an image missing": (
        lambda root, _: remove(next((root / "images" / SPECIES[2]).iterdir())),
        "1 missing image file: .*images.txt names .*, which is not in",
    ),
    "captions missing": (
        lambda _, texts: remove(*(texts / SPECIES[1]).iterdir()),
        "2 no caption: there is no caption file",
    ),
    "captions empty": (
        lambda _, texts: next((texts / SPECIES[1]).iterdir()).write_text("\n \n"),
        "1 no caption: .*its text is empty",
    ),
    "a path that leads out": (
        lambda root, _: (root / "images.txt").write_text(f"3 {SPECIES[1]}/../../x.jpg\n"),
        "1 image outside of its folder: .*images.txt names .*outside",
    ),
}


@pytest.mark.parametrize("damage", CUB_DAMAGE)
def test_cub_that_does_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    images, captions = make_cub(tmp_path)
    harm, message = CUB_DAMAGE[damage]
    harm(images, captions)
    assert re.search(message, problems("cub", images, captions))


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    images, captions = make_cub(tmp_path)
    (images / "images.txt").write_text(f"1 {SPECIES[1]}/x.jpg\n")
    with pytest.raises(DataError, match="no image of the split 'test'"):
        read_source("cub", images, captions, "test")


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_missing_folders_are_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        captions = "" if source == "parquet" else "captions"  # which has them in its columns
        read_source(source, tmp_path / "nowhere", captions)
    with pytest.raises(DataError, match="images= is missing"):
        SOURCES[source](ShardsConfig(source=source))
