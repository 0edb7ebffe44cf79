"""Layouts of tools and releases that many people have on their disks, file by file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.choose_vocabulary import make_vocabulary
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.split import Split
from tests.data.test_webdataset_tars import img2dataset, pack
from tests.support.data import captions_of, image_bytes


def built(images: Path, output: Path, **settings: str) -> Split:
    config = ShardsConfig(source="folder", images=str(images), output=str(output), **settings)  # type: ignore[arg-type]
    build_split(config)
    return Split.open(DataConfig(path=config.output), config.split)


def keys_of(split: Split) -> list[str]:
    return [split.sample(number).key for number in range(split.count)]


# --- img2dataset's output_format=files


def described(number: int, status: str = "success") -> dict[str, object]:
    """What img2dataset notes of an image; what failed has no sizes."""
    whole = status == "success"
    return {
        "caption": captions_of(number)[0] if whole else "a zebra that nobody could fetch",
        "url": f"https://images.example/{number}.jpg",
        "key": f"{number // 10:05d}{number % 10:04d}",
        "status": status,
        "error_message": None if whole else "HTTP Error 404: Not Found",
        "width": 60 if whole else None,
        "height": 48 if whole else None,
        "original_width": 600 if whole else None,
        "original_height": 480 if whole else None,
        "exif": "{}" if whole else None,
        "sha256": f"{number:064x}" if whole else None,
    }


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path)


def write_files(folder: Path) -> None:
    """Write two folders of three downloads each, of which the second failed."""
    for shard in range(2):
        (folder / f"{shard:05d}").mkdir(parents=True)
        rows = []
        for number in range(10 * shard, 10 * shard + 3):
            said = described(number, "failed_to_download" if number % 10 == 1 else "success")
            rows.append(said)
            if said["status"] == "success":
                place = folder / f"{shard:05d}" / str(said["key"])
                place.with_suffix(".jpg").write_bytes(image_bytes(number, "JPEG", 60, 48))
                place.with_suffix(".txt").write_text(str(said["caption"]))
                place.with_suffix(".json").write_text(json.dumps(said, indent=4))
        write_table(folder / f"{shard:05d}.parquet", rows)
        stats = {
            "count": 3,
            "successes": 2,
            "failed_to_download": 1,
            "failed_to_resize": 0,
            "duration": 1.5,
            "start_time": 0.5,
            "end_time": 2.0,
            "status_dict": {"success": 2, "HTTP Error 404: Not Found": 1},
        }
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=4))


def test_files_of_img2dataset(tmp_path: Path) -> None:
    write_files(tmp_path / "in")
    (tmp_path / "in" / "00001" / "000010002.txt").write_text("")  # has no caption
    said = described(12) | {"caption": None}
    (tmp_path / "in" / "00001" / "000010002.json").write_text(json.dumps(said, indent=4))
    split = built(tmp_path / "in", tmp_path / "out", format="original")
    assert keys_of(split) == [
        "00000/000000000.jpg",
        "00000/000000002.jpg",
        "00001/000010000.jpg",
    ]
    for place, number in enumerate((0, 2, 10)):
        sample = split.sample(place)
        assert sample.image == image_bytes(number, "JPEG", 60, 48)
        assert sample.captions == (captions_of(number)[0],)
        assert sample.source is not None
        assert sample.source["url"] == f"https://images.example/{number}.jpg"
        assert sample.source["original_width"] == 600
    (rejected,) = (tmp_path / "out" / "train" / "rejected.jsonl").read_text().splitlines()
    assert "000010002" in rejected
    assert "no caption" in rejected


@pytest.mark.parametrize("form", ["files", "webdataset"])
def test_a_vocabulary_counts_each_caption_of_img2dataset_once(tmp_path: Path, form: str) -> None:
    """The parquet files beside tars and folders repeat them, and have those of failed downloads."""
    write_files(tmp_path / "in")
    if form == "webdataset":
        for shard in range(2):
            numbers = (10 * shard, 10 * shard + 2)
            for path in (tmp_path / "in" / f"{shard:05d}").iterdir():
                path.unlink()
            (tmp_path / "in" / f"{shard:05d}").rmdir()
            members = [part for number in numbers for part in img2dataset(number)]
            pack(tmp_path / "in" / f"{shard:05d}.tar", members)
    texts = [captions_of(number)[0] for number in (0, 2, 10, 12)]
    expected = Vocabulary.from_captions(texts, min_count=2)
    made = make_vocabulary(tmp_path / "out", [tmp_path / "in"], min_count=2)
    assert made.words == expected.words


# --- Multi-Modal-CelebA-HQ


def write_faces(root: Path) -> None:
    """Images by their numbers, ten captions a file, and which images a split has."""
    (root / "images").mkdir(parents=True)
    (root / "text" / "celeba-caption").mkdir(parents=True)
    for number in range(12):
        (root / "images" / f"{number}.jpg").write_bytes(image_bytes(number, "JPEG", 64, 64))
        texts = [f"{captions_of(number)[line % 3]} {line}" for line in range(10)]
        path = root / "text" / "celeba-caption" / f"{number}.txt"
        path.write_text("\n".join(texts) + "\n")
    for split, numbers in (("train", range(0, 12, 2)), ("test", range(1, 12, 2))):
        (root / split).mkdir()
        names = [str(number) for number in numbers]
        (root / split / "filenames.pickle").write_bytes(pickle.dumps(names, 2))


@pytest.mark.parametrize(("name", "first"), [("train", 0), ("test", 1)])
def test_multi_modal_celeba_hq(tmp_path: Path, name: str, first: int) -> None:
    write_faces(tmp_path / "mmceleba")
    images, texts = tmp_path / "mmceleba" / "images", tmp_path / "mmceleba" / "text"
    given = {"captions": str(texts / "celeba-caption"), "split": name}
    split = built(images, tmp_path / "out", **given)
    assert keys_of(split) == [str(number) for number in range(first, 12, 2)]
    for place, number in enumerate(range(first, 12, 2)):
        captions = split.sample(place).captions
        assert captions == tuple(f"{captions_of(number)[line % 3]} {line}" for line in range(10))


def test_multi_modal_celeba_hq_has_no_other_split(tmp_path: Path) -> None:
    write_faces(tmp_path / "mmceleba")
    images, texts = tmp_path / "mmceleba" / "images", tmp_path / "mmceleba" / "text"
    given = {"captions": str(texts / "celeba-caption"), "split": "valid"}
    with pytest.raises(DataError, match=r"mmceleba has the splits test, train .*split=all takes"):
        built(images, tmp_path / "out", **given)
    assert built(images, tmp_path / "out", **(given | {"split": "all"})).count == 12
