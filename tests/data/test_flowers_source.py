"""Oxford-102's public layout: classes from folders, the split by class, images found by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources import SOURCES
from tests.support.data import captions_of, make_flowers, problems, read_source


def classes(images: Path, texts: Path, split: str) -> list[int]:
    return sorted({sample.class_id for sample in read_source("flowers", images, texts, split)})


def test_images_are_found_by_number_and_classes_by_folder(tmp_path: Path) -> None:
    images, texts = make_flowers(tmp_path)
    samples = read_source("flowers", images, texts, "all")
    assert [sample.key for sample in samples[:3]] == ["image_00001", "image_00013", "image_00002"]
    assert [sample.class_id for sample in samples] == [n for n in range(1, 7) for _ in "ab"]
    assert list(samples[1].captions) == captions_of(13)
    assert samples[1].path == images / "image_00013.jpg"
    assert read_source("flowers", tmp_path, texts, "all") == samples


def test_the_lists_of_classes_decide_the_split_where_they_are(tmp_path: Path) -> None:
    images, texts = make_flowers(tmp_path)
    assert classes(images, texts, "train") == [1, 2, 3, 4, 6]
    assert classes(images, texts, "test") == [5]
    config = ShardsConfig(images=str(images), captions=str(texts), split="test")
    (remark,) = SOURCES["flowers"](config).remarks
    assert "compare with no paper's" in remark
    (tmp_path / "trainvalclasses.txt").write_text("class_00005\nclass_00002\n")
    (tmp_path / "testclasses.txt").write_text("class_00001\r\n\n")
    assert classes(images, texts, "train") == [2, 5]
    assert classes(images, texts, "test") == [1]
    assert SOURCES["flowers"](config).remarks == ()


def test_the_authors_lists_of_images(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    images, texts = make_flowers(tmp_path)
    scipy.savemat(tmp_path / "setid.mat", {"trnid": np.array([[13, 2]], "u2")})
    samples = read_source("flowers", images, texts, "trnid")
    assert [sample.key for sample in samples] == ["image_00013", "image_00002"]
    with pytest.raises(DataError, match=r"setid\.mat has no list valid .*fetch it again"):
        read_source("flowers", images, texts, "valid")


def test_what_does_not_fit_is_refused_or_listed(tmp_path: Path) -> None:
    images, texts = make_flowers(tmp_path)
    with pytest.raises(DataError, match=r"split=val is none of .*train, test, trnid"):
        read_source("flowers", images, texts, "val")
    with pytest.raises(DataError, match=r"a list of setid\.mat, which is not in"):
        read_source("flowers", images, texts, "tstid")
    with pytest.raises(DataError, match="captions= must name the folder text_c10"):
        read_source("flowers", images, images, "train")
    (tmp_path / "testclasses.txt").write_text("5\n")
    with pytest.raises(DataError, match="has the line '5' instead of a class"):
        read_source("flowers", images, texts, "test")
    (images / "image_00001.jpg").unlink()
    (texts / "class_00002" / "image_00002.txt").write_text("\n")
    assert len(problems("flowers", images, texts, "all").splitlines()) == 2
