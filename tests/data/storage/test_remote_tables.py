"""Large tables of splits on servers: only what is needed is fetched, and nothing is believed."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.build import finish
from t2i_hpc.data.format import manifest, outline
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.format.outline import Outline
from t2i_hpc.data.format.tables import SHARD_ROW
from t2i_hpc.data.split import Split
from t2i_hpc.data.storage import remote_tables
from tests.support.data import make_shards, vouch
from tests.support.servers import FileServer, first_times, flip_a_bit, serving


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split of five shards that counts as one of many: its table has blocks of two rows."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (manifest, finish):
            patched.setattr(module, "MOST", 4)
        patched.setattr(outline, "ROWS", 2)
        folder = make_shards(tmp_path_factory.mktemp("large"), count=22, size=24, shard_samples=5)
    assert (folder / "train" / "outline.bin").exists()
    assert not (folder / "test" / "outline.bin").exists()
    return folder


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (outline, remote_tables):
        monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr(remote_tables, "WHOLE", 256)


def keys(split: Split) -> list[str]:
    return [split.sample(number).key for number in range(split.count)]


EXPECTED = [f"{number:04d}.png" for number in range(22)]


def test_only_what_is_needed_is_fetched(
    server: FileServer, config: DataConfig, shards: Path
) -> None:
    split = Split.open(config, "train")
    assert np.array_equal(split.manifest.counts, Manifest.load(shards / "train").counts)
    assert server.asked["train/shards.npy"] == server.asked["train/index.npy"] == 1  # the headers
    assert split.sample(11).key == "0011.png"
    assert server.asked["train/shards.npy"] == server.asked["train/index.npy"] == 2
    assert keys(pickle.loads(pickle.dumps(split))) == EXPECTED
    assert server.asked["train/index.npy"] == 1 + 5
    assert server.asked["train/shards.npy"] == 1 + 3
    server.asked.clear()
    assert keys(Split.open(config, "train")) == EXPECTED
    assert server.asked == {"train/manifest.json": 1, "vocabulary.json": 1}


def test_a_server_without_ranges_sends_whole_tables(server: FileServer, config: DataConfig) -> None:
    server.ranges = False
    assert keys(Split.open(config, "train")) == EXPECTED
    assert server.asked["train/shards.npy"] == server.asked["train/index.npy"] == 1


@pytest.mark.parametrize(("name", "at"), [("index.npy", 30), ("shards.npy", 50)])
def test_rows_that_are_not_the_manifests(
    server: FileServer, config: DataConfig, name: str, at: int
) -> None:
    split = Split.open(config, "train")
    server.fault = first_times(1, name, lambda handler: flip_a_bit(handler, at))
    assert split.sample(0).key == "0000.png"  # the second time they are right
    server.fault = lambda handler, path: path.endswith(name) and flip_a_bit(handler, at)
    with pytest.raises(DataError, match=rf"split http://127\S*/train is damaged: rows of {name}"):
        split.sample(21)


def test_kept_rows_that_rot_are_fetched_again(server: FileServer, config: DataConfig) -> None:
    assert keys(Split.open(config, "train")) == EXPECTED
    kept = sorted((Path(config.cache) / "shards").glob("*.rows"))
    assert len(kept) == 5 + 3
    for path in kept:
        content = bytearray(path.read_bytes())
        content[20] ^= 1
        path.write_bytes(content)
    os.truncate(kept[0], 10)
    assert keys(Split.open(config, "train")) == EXPECTED
    assert server.asked["train/index.npy"] == 1 + 2 * 5


def test_an_outline_that_is_not_the_manifests(server: FileServer, config: DataConfig) -> None:
    server.fault = lambda handler, path: path.endswith("outline.bin") and flip_a_bit(handler, 12)
    with pytest.raises(DataError, match=r"is damaged: \S*outline\.bin is not the outline of"):
        Split.open(config, "train")
    assert server.asked["train/outline.bin"] == 2


def test_the_outline_of_many_shards_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outline, "ROWS", 256)
    table = np.zeros(10**5, SHARD_ROW)
    table["count"] = np.random.default_rng(0).integers(900, 1001, len(table))
    table["bytes"] = 10**8
    made = Outline.of(table)
    sha256 = made.save(tmp_path)
    assert (tmp_path / "outline.bin").stat().st_size < 4e5
    found = Outline.load(tmp_path / "outline.bin", 10**5, sha256)
    assert np.array_equal(found.counts, table["count"])
    assert (found.largest, found.blocks) == (10**8, made.blocks)
    assert len(sha256) == len(hashlib.sha256().hexdigest())


def test_a_split_without_an_outline_stays_what_it_was(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, count=4, size=16)
    before = (shards / "train" / "manifest.json").read_bytes()
    assert b"outline" not in before
    assert vouch(shards / "train").outline == ""
    with serving(shards) as server:
        config = DataConfig(path=server.url, cache=str(tmp_path / "cache"), retry_seconds=20)
        assert Split.open(config, "train").manifest.digest == hashlib.sha256(before).hexdigest()
