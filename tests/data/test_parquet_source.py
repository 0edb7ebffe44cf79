"""Parquet files that hold images, as Hugging Face and img2dataset write them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from t2i_hpc.common.errors import ConfigurationError, DataError, UserError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.choose_vocabulary import make_vocabulary
from t2i_hpc.data.build.sources import SOURCES
from t2i_hpc.data.build.split_writer import build_partition, build_split, merge_split
from t2i_hpc.data.split import Split
from tests.support.data import captions_of, image_bytes

HUGGING_FACE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
IMG2DATASET = pyarrow.schema(
    [
        ("caption", pyarrow.string()),
        ("url", pyarrow.string()),
        ("key", pyarrow.string()),
        ("status", pyarrow.string()),
        ("error_message", pyarrow.string()),
        ("width", pyarrow.int32()),
        ("exif", pyarrow.string()),
        ("txt", pyarrow.string()),
        ("jpg", pyarrow.binary()),
    ]
)


def hugging_face(path: Path, numbers: range, rows: int = 3) -> None:
    """Write as ``datasets.Dataset.to_parquet`` does: a struct, and captions as a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(
        {
            "image": pyarrow.array(
                [{"bytes": image_bytes(n), "path": f"{n}.png"} for n in numbers], HUGGING_FACE
            ),
            "text": [captions_of(n) for n in numbers],
            "score": [0.5 * n for n in numbers],
            "embedding": [[0.0] * 4 for _ in numbers],
        }
    )
    parquet.write_table(table, path, row_group_size=rows)


def img2dataset(path: Path, numbers: range, failed: int) -> None:
    """Write as img2dataset does, a group of rows a time; failed downloads have no image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with parquet.ParquetWriter(path, IMG2DATASET) as writer:
        for n in numbers:
            good = n != failed
            row: dict[str, Any] = {
                "caption": captions_of(n)[0],
                "url": f"http://a/{n}.jpg",
                "key": f"{n:09d}",
                "status": "success" if good else "failed_to_download",
                "error_message": None if good else "HTTP Error 404",
                "width": 40 if good else None,
                "exif": '{"Image Orientation": "Rotated 180"}' if n == 0 else "{}",
                "txt": captions_of(n)[0] if good else None,
                "jpg": image_bytes(n, "JPEG") if good else None,
            }
            writer.write_table(pyarrow.Table.from_pylist([row], IMG2DATASET))


def config_of(tmp_path: Path, **settings: Any) -> ShardsConfig:
    given: dict[str, Any] = {
        "images": str(tmp_path / "in"),
        "output": str(tmp_path / "out"),
        "format": "original",
        "shard_samples": 4,
        "workers": 1,
    }
    return ShardsConfig(source="parquet", **(given | settings))


def opened(folder: Path) -> Split:
    return Split.open(DataConfig(path=str(folder)), "train")


def test_files_of_hugging_face(tmp_path: Path) -> None:
    data = tmp_path / "in" / "data"
    hugging_face(data / "train-00000-of-00002.parquet", range(7))
    hugging_face(data / "train-00001-of-00002.parquet", range(7, 10))
    hugging_face(data / "test-00000-of-00001.parquet", range(20, 22))
    built = build_split(config_of(tmp_path))
    assert built.manifest.counts.tolist() == [4, 4, 2]
    split = opened(tmp_path / "out")
    for n in range(10):
        sample, (file, row) = split.sample(n), divmod(n, 7)
        assert sample.key == f"data/train-{file:05d}-of-00002/{row:06d}"
        assert (sample.image, sample.captions) == (image_bytes(n), tuple(captions_of(n)))
        assert sample.source == {"score": 0.5 * n}
    assert len({split.sample(n).class_id for n in range(10)}) == 10
    assert len(SOURCES["parquet"](config_of(tmp_path, split="all")).samples) == 12
    with pytest.raises(DataError, match="has the splits test, train: split=val is none of them"):
        build_split(config_of(tmp_path, split="val"))


def test_files_of_img2dataset(tmp_path: Path) -> None:
    img2dataset(tmp_path / "in" / "00000.parquet", range(6), failed=2)
    img2dataset(tmp_path / "in" / "00001.parquet", range(6, 9), failed=8)
    built = build_split(config_of(tmp_path, filter="width >= 40 and url != 'http://a/4.jpg'"))
    assert re_summed(str(built)) == ["2 not downloaded by their status", "1 left out by filter="]
    assert built.manifest.counts.tolist() == [3, 3]
    split = opened(tmp_path / "out")
    samples = [split.sample(n) for n in range(6)]
    assert [one.key[-3:] for one in samples] == ["000", "001", "003", "005", "000", "001"]
    assert samples[1].captions == (captions_of(1)[0],)
    assert samples[1].source == {"url": "http://a/1.jpg", "width": 40}
    assert samples[0].image.startswith(b"\x89PNG")  # turned by what exif said


def re_summed(said: str) -> list[str]:
    return [part for part in said.split("; ") if "not downloaded" in part or "left out" in part]


def test_partitions_read_their_own_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in range(4):
        img2dataset(tmp_path / "in" / f"{file}.parquet", range(4 * file, 4 * file + 4), failed=-1)
    part = config_of(tmp_path, output=str(tmp_path / "parts"), partition="2/2", workers=2)
    with pytest.raises(DataError, match=r"no vocabulary, .* write it first, shards vocabulary "):
        build_partition(part)
    made = make_vocabulary(tmp_path / "parts", [tmp_path / "in"])
    build_split(config_of(tmp_path))
    build_partition(part)
    build_partition(config_of(tmp_path, output=str(tmp_path / "parts"), partition="1/2"))
    merge_split(tmp_path / "parts" / "train")
    assert opened(tmp_path / "parts").vocabulary.sha256 == made.sha256
    for whole in (tmp_path / "out" / "train").glob("*.tar"):
        assert whole.read_bytes() == (tmp_path / "parts" / "train" / whole.name).read_bytes()


def test_memory_is_that_of_a_few_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = [{"jpg": bytes(10_000), "caption": "a bird"}] * 64
    with parquet.ParquetWriter(
        tmp_path / "in" / "a.parquet",
        pyarrow.schema([("jpg", pyarrow.binary()), ("caption", pyarrow.string())]),
    ) as writer:
        for _ in range(20):
            writer.write_table(pyarrow.Table.from_pylist(rows))
    samples = SOURCES["parquet"](config_of(tmp_path)).samples
    tracemalloc.start()
    before = pyarrow.total_allocated_bytes()
    held = max(pyarrow.total_allocated_bytes() for _ in samples) - before
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == 1280
    assert peak + held < 3_000_000  # of 12,800,000


REFUSED: dict[str, dict[str, Any]] = {
    r"holds no images, but the columns url, caption: .*img2dataset": {"url": ["a"]},
    r"bytes in the columns one, two: name that .* image_key=": {"one": [b"1"], "two": [b"2"]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_unclear_columns_are_refused(tmp_path: Path, message: str) -> None:
    (tmp_path / "in").mkdir()
    table = pyarrow.table(REFUSED[message] | {"caption": ["a bird"]})
    parquet.write_table(table, tmp_path / "in" / "a.parquet")
    with pytest.raises(UserError, match=message):
        build_split(config_of(tmp_path))


def test_a_column_of_images_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = pyarrow.table(
        {"image": [b"mask"] * 2, "Photo": [image_bytes(0), None], "DE": ["ein Vogel", "zwei"]}
    )
    parquet.write_table(table, tmp_path / "in" / "a.parquet")
    config = config_of(tmp_path, image_key="Photo", caption_key="DE")
    built = build_split(config)
    assert (built.manifest.sample_count, dict(built.kinds)) == (1, {"no image": 1})
    assert opened(tmp_path / "out").sample(0).captions == ("ein Vogel",)
    with pytest.raises(ConfigurationError, match="no sample says 'widht'"):
        build_split(config_of(tmp_path, output=str(tmp_path / "o"), filter="widht > 3"))
    with pytest.raises(DataError, match="image_key=Photo does not belong to source=folder"):
        build_split(ShardsConfig(source="folder", image_key="Photo", output="o"))
