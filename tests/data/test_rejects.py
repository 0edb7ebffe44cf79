"""Images that cannot be used are left out, listed and limited; small ones are counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.split_writer import build_partition, build_split, merge_split
from t2i_hpc.data.images import encode
from t2i_hpc.data.split import Split
from t2i_hpc.data.verification import verify_split
from tests.support.data import draw_image, image_bytes, make_cub, make_image_folder


def prepare(tmp_path: Path, count: int = 10) -> ShardsConfig:
    images = make_image_folder(tmp_path / "in", range(count))
    return ShardsConfig(
        images=str(images),
        output=str(tmp_path / "out"),
        size=24,
        shard_samples=4,
        format="png",
        max_rejected=0.3,
        workers=2,
    )


def spoil(config: ShardsConfig, number: int, content: bytes = b"no image") -> Path:
    path = Path(config.images) / f"{number:04d}.png"
    path.write_bytes(content)
    return path


def strip() -> bytes:
    return encode(np.zeros((3, 2000, 3), dtype=np.uint8), "png", 0)


def test_rejected_images_are_left_out_and_listed(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    paths = [
        spoil(config, 1, image_bytes(1)[:90]),
        spoil(config, 2, strip()),
        spoil(config, 9),
    ]
    built = build_split(config)
    assert (built.rejected, built.small) == (3, 0)
    assert built.manifest.counts.tolist() == [2, 4, 1]
    verify_split(built.manifest, lambda _: None)
    lines = (Path(config.output) / "train" / "rejected.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["key"], row["path"]) for row in rows] == [(p.name, str(p)) for p in paths]
    reasons = [row["reason"] for row in rows]
    assert "cannot be decoded" in reasons[0]
    assert "is a strip of 3 by 2000" in reasons[1]
    assert "cannot be decoded" in reasons[2]
    split = Split.open(DataConfig(path=config.output), "train")
    assert [split.sample(number).key for number in range(7)] == [
        f"{number:04d}.png" for number in (0, 3, 4, 5, 6, 7, 8)
    ]
    assert "3 rejected (image that cannot be decoded: 2, strip: 1), see " in str(built)


def test_without_rejected_images_there_is_no_list(tmp_path: Path) -> None:
    built = build_split(prepare(tmp_path))
    assert not (built.manifest.folder / "rejected.jsonl").exists()
    assert "rejected (" not in str(built)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (0, 4, 5, 8)], ids=["one shard", "all shards"])
def test_too_many_fail_and_the_next_try_resumes(
    tmp_path: Path, workers: int, numbers: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(prepare(tmp_path), workers=workers)
    paths = [spoil(config, number) for number in numbers]
    message = (
        r"of 10 samples were rejected, more than the 3 of max_rejected=0\.3 \(.*\): see (\S+);"
    )
    with pytest.raises(DataError, match=message) as failed:
        build_split(config)
    listed = Path(config.output) / ".train.partial" / "rejected.jsonl"
    assert f"see {listed};" in str(failed.value)
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert len(rows) > 3
    assert f"The first: {rows[0]['reason']}" in str(failed.value)
    assert {row["path"] for row in rows} <= {str(path) for path in paths}
    built = build_split(replace(config, max_rejected=0.4))
    assert (built.rejected, built.manifest.sample_count) == (4, 6)
    assert not listed.exists()


def test_exactly_as_many_as_allowed(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    for number in (0, 5, 9):
        spoil(config, number)
    assert build_split(config).rejected == 3


def test_none_is_allowed(tmp_path: Path) -> None:
    config = replace(prepare(tmp_path), max_rejected=0.0)
    spoil(config, 7)
    with pytest.raises(DataError, match=r"1 of 10 samples .*0007\.png cannot be decoded"):
        build_split(config)


def test_all_rejected(tmp_path: Path) -> None:
    config = replace(prepare(tmp_path, 3), max_rejected=1.0)
    for number in range(3):
        spoil(config, number)
    with pytest.raises(DataError, match=r"none of the 3 samples .*0000\.png cannot be decoded"):
        build_split(config)


def test_shards_without_samples_leave_no_gap(tmp_path: Path) -> None:
    config = replace(prepare(tmp_path), shard_samples=2, max_rejected=0.6)
    for number in (0, 1, 4, 5):
        spoil(config, number)
    built = build_split(config)
    assert built.manifest.counts.tolist() == [2, 2, 2]
    assert sorted(path.name for path in built.manifest.folder.glob("*.tar")) == [
        f"{number:06d}.tar" for number in range(3)
    ]
    verify_split(built.manifest, lambda _: None)
    assert Split.open(DataConfig(path=config.output), "train").sample(2).key == "0006.png"


def test_rejected_images_of_all_partitions_count_together(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    for number in (0, 1, 4, 5):
        spoil(config, number)
    for part in ("1/3", "2/3", "3/3"):
        build_partition(replace(config, partition=part))
    target = Path(config.output) / "train"
    with pytest.raises(DataError, match=r"4 of 10 samples were rejected"):
        merge_split(target)
    assert merge_split(target, max_rejected=0.4).rejected == 4


def test_an_image_that_is_no_file_is_left_out(tmp_path: Path) -> None:
    config = replace(prepare(tmp_path), workers=0)
    path = spoil(config, 3)
    path.unlink()
    path.mkdir()
    assert "missing image file: 1" in str(build_split(config))


def test_want_of_memory_is_no_rejected_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("t2i_hpc.data.images._decode_with_pillow", fail)
    with pytest.raises(DataError, match=r"^\S+0000\.png cannot be decoded \(MemoryError\)"):
        build_split(replace(prepare(tmp_path), max_rejected=1.0, workers=0))


def test_a_box_outside_of_its_image(tmp_path: Path) -> None:
    images, captions = make_cub(tmp_path / "in")
    boxes = images / "bounding_boxes.txt"
    boxes.write_text(boxes.read_text().replace("4 20.0 15.0 30.0 24.0", "4 900 900 5 5"))
    config = ShardsConfig(
        source="cub",
        images=str(images),
        captions=str(captions),
        output=str(tmp_path / "out"),
        max_rejected=0.5,
    )
    assert build_split(config).rejected == 1


def test_images_smaller_than_the_size_are_counted(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    draw_image(3, 30, 20).save(Path(config.images) / "0003.png")
    draw_image(4, 24, 24).save(Path(config.images) / "0004.png")
    built = build_split(config)
    assert (built.small, built.manifest.smallest) == (1, 20)
    assert "1 images are smaller than size=24 px and kept as they are" in str(built)
    assert Split.open(DataConfig(path=config.output), "train").image(3).shape == (20, 30, 3)
