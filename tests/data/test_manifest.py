"""A split that is damaged is refused at once, with the name of what is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.data.manifest import ROW, Manifest, verify
from tests.support.data import make_shards


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return make_shards(tmp_path, count=6, size=16, shard_samples=4) / "train"


def test_the_manifest_describes_the_files(split: Path) -> None:
    manifest = Manifest.load(split)
    assert manifest.counts == [4, 2]
    assert manifest.sample_count == 6
    assert (manifest.split, manifest.image_format, manifest.smallest) == ("train", "png", 16)
    assert manifest.digest == sha256_of_file(split / "manifest.json")
    assert manifest.bytes == sum(path.stat().st_size for path in split.glob("*.tar"))
    assert [shard.sha256 for shard in manifest.shards] == [
        sha256_of_file(split / name) for name in ("000000.tar", "000001.tar")
    ]


def test_the_index_is_mapped_not_loaded(split: Path) -> None:
    index = Manifest.load(split).open_index()
    assert isinstance(index, np.memmap)
    assert index.dtype == ROW
    assert ROW.itemsize == 25
    assert len(index) == 6


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1024])


def rewrite(split: Path, text: str) -> None:
    (split / "manifest.json").write_text(text)


def edit(**changes: object) -> Callable[[Path], None]:
    def change(split: Path) -> None:
        path = split / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def edit_shard(**changes: object) -> Callable[[Path], None]:
    def change(split: Path) -> None:
        path = split / "manifest.json"
        content: dict[str, Any] = json.loads(path.read_text())
        content["shards"][1] |= changes
        path.write_text(json.dumps(content))

    return change


def negative_shard(split: Path) -> None:
    edit_shard(count=-1)(split)
    edit(sample_count=3)(split)


def shuffle_index(split: Path) -> None:
    index = np.load(split / "index.npy")
    np.save(split / "index.npy", index[::-1])


def pickled_index(split: Path) -> None:
    np.save(split / "index.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def cut_index(split: Path) -> None:
    path = split / "index.npy"
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut tar": (
        lambda split: cut(split / "000001.tar"),
        r"000001\.tar has [\d,]+ bytes instead of [\d,]+",
    ),
    "missing tar": (lambda split: (split / "000000.tar").unlink(), r"000000\.tar is missing"),
    "missing manifest": (lambda split: (split / "manifest.json").unlink(), "is no split"),
    "cut manifest": (lambda split: cut(split / "manifest.json"), r"manifest\.json is damaged"),
    "no object": (lambda split: rewrite(split, "[]"), "is damaged"),
    "another format": (edit(format=2), "format 2 instead of 1"),
    "another count": (edit(sample_count=7), "is not the sum"),
    "no shards": (edit(shards=[], sample_count=0), "is not the sum"),
    "a number as text": (edit(size="304"), "'304' is no int"),
    "a text as number": (edit(split=3), "3 is no str"),
    "a shard elsewhere": (edit_shard(name="../x.tar"), r"the shard '\.\./x\.tar'"),
    "a negative shard": (negative_shard, "with -1 samples"),
    "missing index": (lambda split: (split / "index.npy").unlink(), r"index\.npy cannot be read"),
    "cut index": (cut_index, r"index\.npy"),
    "shuffled index": (shuffle_index, "is not the index of this manifest"),
    "pickled index": (pickled_index, r"index\.npy cannot be read"),
    "index of others": (
        lambda split: np.save(split / "index.npy", np.zeros(6)),
        "rows of float64",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(split: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    harm(split)
    with pytest.raises(DataError, match=message) as caught:
        Manifest.load(split)
    assert "\n" not in str(caught.value)


def test_verifying_finds_a_flipped_bit(split: Path) -> None:
    manifest = Manifest.load(split)
    verify(manifest)
    content = bytearray((split / "000001.tar").read_bytes())
    content[700] ^= 1
    (split / "000001.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"content of .*000001\.tar has changed"):
        verify(Manifest.load(split))
