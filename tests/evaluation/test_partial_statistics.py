"""Shards cover every image exactly once, or the merge refuses and names the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.fid import NAMES, Moments
from t2i_hpc.runs.partial_statistics import (
    Header,
    PartialStatistics,
    Target,
    load_header,
    merge_sums,
    shard_path,
    shard_range,
    shards_of_rank,
)

BATCH = 1
TARGET = Target("generated", "abcdef012345", "c" * 64, 20, BATCH)


def _moments(numbers: range) -> Moments:
    moments = Moments.empty(3)
    rows = torch.tensor([[number, number**2, 1.0] for number in numbers]).reshape(-1, 3)
    moments.add_rows(rows / 7)
    return moments


def _save(
    folder: Path, numbers: range, shard: int, target: Target = TARGET, shards: int = 3
) -> Path:
    path = shard_path(folder, shard, shards, BATCH)
    header = Header(target, numbers.start, numbers.stop, shard, shards)
    PartialStatistics(header, dict(_moments(numbers).arrays())).save(path)
    return path


def _save_all(folder: Path) -> list[Path]:
    return [_save(folder, shard_range(20, 3, shard), shard) for shard in range(3)]


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 40))
def test_ranges_cover_every_image_once(images: int, shards: int, batch_size: int) -> None:
    ranges = [shard_range(images, shards, shard, batch_size) for shard in range(shards)]
    assert [number for numbers in ranges for number in numbers] == list(range(images))
    batches = [-(-len(numbers) // batch_size) for numbers in ranges]
    assert max(batches) - min(batches) <= 1
    assert all(numbers.start % batch_size == 0 for numbers in ranges if numbers)


def test_ranges_of_single_images_differ_by_at_most_one() -> None:
    assert [len(shard_range(10, 4, shard)) for shard in range(4)] == [3, 3, 2, 2]
    assert [len(shard_range(2, 4, shard)) for shard in range(4)] == [1, 1, 0, 0]


@pytest.mark.parametrize("shard", [-1, 4, 99])
def test_a_shard_that_does_not_exist_is_refused(shard: int) -> None:
    with pytest.raises(EvaluationError, match=r"shards=4 makes the shards 0 to 3"):
        shard_range(10, 4, shard)


def test_ranks_share_all_parts() -> None:
    slices = [list(shards_of_rank(7, rank, 3)) for rank in range(3)]
    assert sorted(shard for own in slices for shard in own) == list(range(7))
    assert slices[1] == [1, 4]


def test_a_file_comes_back(tmp_path: Path) -> None:
    path = _save(tmp_path / "new", range(7, 14), 1)
    assert path.name == "shard-00001-of-00003-batch-1.npz"
    content = PartialStatistics.load(path)
    assert content.header == load_header(path) == Header(TARGET, 7, 14, 1, 3)
    expected = _moments(range(7, 14)).arrays()
    assert content.sums.keys() == expected.keys()
    np.testing.assert_array_equal(content.sums["outer"], expected["outer"])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    with np.load(_save(tmp_path, range(7), 0), allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive)


def test_merge_in_any_order(tmp_path: Path) -> None:
    paths = _save_all(tmp_path)
    whole = _moments(range(20)).arrays()
    merged = merge_sums([paths[2], paths[0], paths[1]], TARGET, NAMES)
    assert merged["count"] == 20
    np.testing.assert_allclose(merged["outer"], whole["outer"], rtol=1e-12)
    again = merge_sums(paths, TARGET, NAMES)
    np.testing.assert_array_equal(merged["outer"], again["outer"])


def test_empty_shards_are_allowed(tmp_path: Path) -> None:
    paths = [*_save_all(tmp_path), _save(tmp_path, range(20, 20), 9, shards=10)]
    assert merge_sums(paths, TARGET, NAMES)["count"] == 20


@pytest.mark.parametrize(("missing", "images"), [(0, "0 to 6"), (1, "7 to 13"), (2, "14 to 19")])
def test_a_hole_is_refused(tmp_path: Path, missing: int, images: str) -> None:
    paths = _save_all(tmp_path)
    del paths[missing]
    with pytest.raises(EvaluationError, match=f"images {images} are missing"):
        merge_sums(paths, TARGET, NAMES)


def test_an_overlap_is_refused(tmp_path: Path) -> None:
    paths = _save_all(tmp_path)
    extra = _save(tmp_path, range(12, 16), 4, shards=5)
    with pytest.raises(EvaluationError, match=r"overlaps .*images 12 to 13") as refusal:
        merge_sums([*paths, extra], TARGET, NAMES)
    assert str(extra) in str(refusal.value)


def test_the_same_shard_twice_is_refused(tmp_path: Path) -> None:
    paths = _save_all(tmp_path)
    with pytest.raises(EvaluationError, match="overlaps"):
        merge_sums([*paths, paths[1]], TARGET, NAMES)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"checkpoint": "d" * 64}, "checkpoint"),
        ({"protocol": "000000000000"}, "protocol"),
        ({"image_set": "real"}, "image set"),
        ({"images": 21}, "images"),
        ({"batch_size": 2}, "batch size"),
    ],
)
def test_a_foreign_shard_is_refused(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    paths = _save_all(tmp_path)
    foreign = _save(tmp_path, range(7, 14), 1, target=replace(TARGET, **change))
    with pytest.raises(EvaluationError, match=f"another {what}") as refusal:
        merge_sums(paths, TARGET, NAMES)
    assert str(foreign) in str(refusal.value)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="images 20 to 29 are missing"):
        target = replace(TARGET, images=30)
        merge_sums([_save(tmp_path, range(20), 0, target=target, shards=1)], target, NAMES)
    with pytest.raises(EvaluationError, match="images 0 to 19 are missing"):
        merge_sums([], TARGET, NAMES)


@pytest.mark.parametrize("place", ["end", "middle", "start"])
def test_a_damaged_file_is_refused(tmp_path: Path, place: str) -> None:
    paths = _save_all(tmp_path)
    content = bytearray(paths[1].read_bytes())
    if place == "end":
        del content[len(content) // 2 :]
    else:
        position = 0 if place == "start" else len(content) // 2
        content[position] ^= 0xFF
    paths[1].write_bytes(bytes(content))
    with pytest.raises(EvaluationError, match="is damaged") as refusal:
        merge_sums(paths, TARGET, NAMES)
    assert str(paths[1]) in str(refusal.value)


def test_altered_numbers_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, range(7), 0)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive}
    arrays["total"][0] += 1e-6
    np.savez(path, **arrays)
    with pytest.raises(EvaluationError, match="does not match its SHA-256"):
        PartialStatistics.load(path)


def test_a_count_that_does_not_match_the_range_is_refused(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 0, 1, BATCH)
    header = Header(TARGET, 0, 20, 0, 1)
    PartialStatistics(header, dict(_moments(range(19)).arrays())).save(path)
    with pytest.raises(EvaluationError, match="is damaged"):
        PartialStatistics.load(path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.npz"
    np.savez(path, header=np.array('{"some": "thing"}'))
    with pytest.raises(EvaluationError, match="no partial statistics"):
        load_header(path)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(EvaluationError, match="damaged"):
        load_header(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"shard-00000-of-00002-batch-1\.npz is missing"):
        merge_sums([shard_path(tmp_path, 0, 2, BATCH)], TARGET, NAMES)


def test_what_every_shard_holds_is_merged_too(tmp_path: Path) -> None:
    paths = _save_all(tmp_path)
    for path in paths:
        content = PartialStatistics.load(path)
        number = content.header.shard
        more = {"more": np.array([number])} | ({"extra": np.ones(2)} if number else {})
        PartialStatistics(content.header, {**content.sums, **more}).save(path)
    merged = merge_sums(paths, TARGET, NAMES)
    assert merged.keys() == {*NAMES, "more"}
    assert merged["more"] == [3]


def test_a_shard_without_what_is_wanted_is_refused(tmp_path: Path) -> None:
    paths = _save_all(tmp_path)
    with pytest.raises(EvaluationError, match="does not hold split_count"):
        merge_sums(paths, TARGET, {*NAMES, "split_count"})
