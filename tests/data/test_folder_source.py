"""Reading a plain folder of images, and refusing what does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from t2i_hpc.common.errors import DataError
from tests.support.data import captions_of, make_image_folder, problems, read_source


@pytest.mark.parametrize("metadata", [True, False])
def test_folder(tmp_path: Path, metadata: bool) -> None:
    images = make_image_folder(tmp_path / "in", range(5, 9), metadata=metadata)
    samples = read_source("folder", images)
    assert [list(sample.captions) for sample in samples] == [captions_of(n) for n in range(5, 9)]
    assert [sample.class_id for sample in samples] == ([2, 0, 1, 2] if metadata else [0, 1, 2, 3])


def test_folders_in_a_folder(tmp_path: Path) -> None:
    for name in ("b", "a"):
        make_image_folder(tmp_path / "in" / name, range(2), metadata=False)
    keys = [sample.key for sample in read_source("folder", tmp_path / "in")]
    assert keys == ["a/0000.png", "a/0001.png", "b/0000.png", "b/0001.png"]


def test_metadata_with_a_single_text_and_no_class(tmp_path: Path) -> None:
    images = make_image_folder(tmp_path / "in", range(2), metadata=False)
    other = tmp_path / "other.jsonl"
    other.write_text('{"file_name": "0001.png", "text": " one "}\n\n')
    (sample,) = read_source("folder", images, other)
    assert (sample.captions, sample.class_id) == (("one",), 0)


METADATA_DAMAGE = {
    "{broken": "line 1 of .*metadata.jsonl is not readable JSON",
    '["a.png"]': "1 no image: line 1 .* has no image",
    '{"file_name": "../a.png", "text": "a"}': "1 image outside of its folder: line 1",
    '{"file_name": "/a.png", "text": "a"}': "outside the folder",
    '{"file_name": "0000.png"}': "line 1 .* no caption for 0000.png \\('captions'",
    '{"file_name": "0000.png", "captions": [1]}': "1 no caption",
    '{"file_name": "0000.png", "text": "a", "class": -1}': "the class -1: write a whole number",
    '{"file_name": "0000.png", "text": " "}': "1 no caption: line 1",
    '{"file_name": "none.png", "text": "a"}': "1 missing image file: line 1 .* names none.png",
    '{"file_name": "0.png", "class": 1}\n{"file_name": "0.png", "class": 2}': "another class",
    "": "metadata.jsonl is empty",
}


@pytest.mark.parametrize("line", METADATA_DAMAGE)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, line: str) -> None:
    images = make_image_folder(tmp_path / "in", range(2))
    (images / "metadata.jsonl").write_text(line + "\n")
    assert re.search(METADATA_DAMAGE[line], problems("folder", images))


def test_images_without_text_files_are_reported(tmp_path: Path) -> None:
    images = make_image_folder(tmp_path / "in", range(4), metadata=False)
    (images / "0001.txt").unlink()
    (images / "0003.txt").unlink()
    assert re.search(
        r"2 no caption: there is no caption file .*0001.txt", problems("folder", images)
    )


def test_text_files_without_images_are_reported(tmp_path: Path) -> None:
    images = make_image_folder(tmp_path / "in", range(4), metadata=False)
    (images / "0002.png").unlink()
    assert re.search(r"1 no image: there is no image .*0002\.txt", problems("folder", images))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        read_source("folder", tmp_path)
