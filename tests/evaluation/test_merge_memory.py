"""What a merge keeps in memory: the features once, and no mapped page beside them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.evaluation.kid import kernel_distance
from t2i_hpc.runs.partial_statistics import (
    features_path,
    in_memory,
    read_features,
    release,
    write_features,
)

MIB = 1 << 20
ROWS, WIDTH = 4096, 2048  # 32 MiB


def _mapped() -> int:
    """Return how many bytes of mapped files are in this process's memory."""
    told = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if not told:
        pytest.skip("this system does not say it")
    return int(told[1]) * 1024


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path, rows = tmp_path / "shard.npz", np.ones((ROWS, WIDTH), np.float32)
    digest = write_features(features_path(path, "float32"), [rows], ROWS, WIDTH, "float32")
    assert digest == sha256_of_file(features_path(path, "float32"))
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_written_features_have_the_hash_of_their_file(tmp_path: Path, dtype: str) -> None:
    path, rows = tmp_path / "shard.npz", np.arange(24, dtype=np.float32).reshape(6, 4)[:, ::-1]
    blocks = [rows[:4], rows[4:]]
    digest = write_features(features_path(path, dtype), blocks, 6, 4, dtype)
    assert digest == sha256_of_file(features_path(path, dtype))
    read = read_features(path, dtype)
    assert read.dtype == dtype
    assert np.array_equal(read, rows)


def test_a_copy_leaves_no_mapped_page_behind(kept: Path) -> None:
    before, features = _mapped(), read_features(kept, "float32")
    copy = in_memory(features)
    assert _mapped() - before < 8 * MIB
    assert copy.dtype == np.float32
    assert np.array_equal(copy, features)  # which are there as before
    assert _mapped() - before > 24 * MIB
    release(features)
    assert _mapped() - before < 8 * MIB


def test_kid_leaves_no_mapped_page_behind(kept: Path) -> None:
    rows = np.ones((2000, WIDTH), np.float32)
    kernel_distance(rows, rows, subsets=1, size=2000, seed=1)  # which loads libraries
    before, features = _mapped(), read_features(kept, "float32")
    kernel_distance(features, features, subsets=2, size=2000, seed=1)
    assert _mapped() - before < 8 * MIB


def test_what_is_no_mapped_file_is_left_alone() -> None:
    rows = np.ones((3, 2), np.float32)
    release(rows)
    assert np.array_equal(in_memory(rows), rows)
