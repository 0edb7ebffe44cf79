"""MDS directories, written here byte by byte as their format says."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.split import Split
from tests.support.data import captions_of, image_bytes

COLUMNS = {"caption": "str", "class": "int", "image": "jpeg:95", "meta": "json", "score": "float32"}
SIZES = [None, 8, None, None, 4]


def write_mds(folder: Path, shards: int = 2, each: int = 3) -> Path:
    folder.mkdir()
    listed = []
    for shard in range(shards):
        samples = []
        for number in range(shard * each, (shard + 1) * each):
            cells = [
                captions_of(number)[0].encode(),
                struct.pack("<q", number % 2),
                image_bytes(number, "JPEG", 60, 48),
                json.dumps({"url": "x"}).encode(),
                struct.pack("<f", number / 2),
            ]
            free = [len(one) for one, size in zip(cells, SIZES, strict=True) if size is None]
            samples.append(struct.pack(f"<{len(free)}I", *free) + b"".join(cells))
        begin, places = 4 * (each + 2) + 7, list[int]()  # 7: the columns again, as JSON
        for sample in samples:
            places.append(begin)
            begin += len(sample)
        head = struct.pack(f"<{each + 2}I", each, *places, begin)
        content = head + b"columns" + b"".join(samples)
        name = f"shard.{shard:05d}.mds"
        (folder / name).write_bytes(content)
        listed.append(
            {
                "format": "mds",
                "version": 2,
                "column_names": list(COLUMNS),
                "column_encodings": list(COLUMNS.values()),
                "column_sizes": SIZES,
                "compression": None,
                "samples": each,
                "raw_data": {"basename": name, "bytes": len(content), "hashes": {}},
                "zip_data": None,
            }
        )
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": listed}))
    return folder


def build(tmp_path: Path, **settings: str) -> Split:
    config = ShardsConfig(
        source="mds",
        images=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        format="original",
        **settings,  # type: ignore[arg-type]
    )
    build_split(config)
    return Split.open(DataConfig(path=config.output), "train")


def test_samples_of_all_shards(tmp_path: Path) -> None:
    write_mds(tmp_path / "in")
    split = build(tmp_path, filter="score < 2.5")
    assert split.count == 5
    for number in range(5):
        sample = split.sample(number)
        assert sample.key == f"shard.{number // 3:05d}/{number % 3:06d}"
        assert sample.image == image_bytes(number, "JPEG", 60, 48)
        assert (sample.captions, sample.class_id) == ((captions_of(number)[0],), number % 2)
        assert sample.source == {"score": number / 2}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"jpeg:95"', '"pkl"', "exactly one must be an image"),
        ('"shard.00001.mds"', '"../shard.00001.mds"', "is not there: fetch the shards"),
        ('"samples": 3', '"samples": 4', "is not the shard that index"),
        ("null, 8, null", "null, 4, null", "is not readable as MDS|has other columns than"),
        ('"shards"', '"shard"', "is not readable as MDS"),
    ],
)
def test_other_directories_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    index = write_mds(tmp_path / "in") / "index.json"
    index.write_text(index.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        build(tmp_path)
