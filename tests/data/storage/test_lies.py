"""Servers that send other bytes than the manifest vouches for: fetched again, or named."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.split import Split
from tests.data.storage.conftest import LONG
from tests.support.data import make_shards
from tests.support.servers import (
    FileServer,
    fail,
    first_times,
    flip_a_bit,
    serving,
)
from tests.support.streams import assert_expected, take

READS = ["shards", "ranges"]


def test_a_wrong_byte_is_fetched_again(
    server: FileServer, config: DataConfig, expected: list[Batch]
) -> None:
    for name, at in ((".tar", 600), ("index.npy", 200), ("shards.npy", 300)):
        server.fault = first_times(1, name, lambda handler, at=at: flip_a_bit(handler, at))  # type: ignore[misc]
        cache = config.cache + name
        server.asked.clear()
        assert_expected(take(replace(config, cache=cache)), expected)
        twice = [path for path, count in server.asked.items() if count == 2]
        assert any(path.endswith(name) for path in twice)


@pytest.mark.parametrize("reads", READS)
def test_a_shard_that_changed_is_named(server: FileServer, config: DataConfig, reads: str) -> None:
    # The last byte of a request is padding of the tar, but for a single sample it is its JSON.
    server.fault = lambda handler, path: path.endswith(".tar") and flip_a_bit(handler, -1)
    with pytest.raises(DataError, match=r"http://127\S*/train/00000\d\.tar has changed since"):
        take(replace(config, remote_reads=reads))
    assert not list(Path(config.cache).rglob("*.tar"))


@pytest.mark.parametrize("reads", READS)
def test_a_shard_that_ends_early_is_named(
    shards: Path, tmp_path: Path, config: DataConfig, reads: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    for tar in (copy / "train").glob("*.tar"):
        os.truncate(tar, 700)
    with serving(copy) as server:
        config = replace(config, path=server.url, remote_reads=reads, retry_seconds=0.3)
        with pytest.raises(DataError, match=r"\.tar \([\d,]+ of [\d,]+ bytes came; tried \d times"):
            take(config)


@pytest.mark.parametrize(
    ("name", "at"), [("shards.npy", -1), ("index.npy", 200), ("index.npy", -1)]
)
def test_a_table_that_is_not_the_manifests_is_refused(
    server: FileServer, config: DataConfig, name: str, at: int
) -> None:
    server.fault = lambda handler, path: path.endswith(name) and flip_a_bit(handler, at)
    with pytest.raises(DataError, match=rf"the split http://127\S*/train is damaged: .*{name}"):
        Split.open(config, "train")
    assert server.asked[f"train/{name}"] == 2


def test_a_split_that_is_not_there(server: FileServer, config: DataConfig) -> None:
    said = r"/trian/manifest\.json \(there is no such file.*: data\.path= is the address of"
    with pytest.raises(DataError, match=said):
        Split.open(config, "trian")
    assert server.asked["trian/manifest.json"] == 2


def test_a_server_that_forbids_is_reported_without_secrets(
    server: FileServer, config: DataConfig
) -> None:
    server.fault = lambda handler, path: fail(handler, 403)
    address = server.url.replace("//", "//me:secret@") + "/?signature=hidden"
    with pytest.raises(DataError, match="the server answers 403 Forbidden") as caught:
        Split.open(replace(config, path=address), "train")
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_new_manifest_is_noticed(tmp_path: Path) -> None:
    first = make_shards(tmp_path / "a", count=4, size=16)
    second = make_shards(tmp_path / "b", count=6, size=16)
    with serving(tmp_path) as server:
        config = DataConfig(cache=str(tmp_path / "cache"), retry_seconds=LONG)
        for shards, count in ((first, 4), (second, 6)):
            shards.rename(tmp_path / "now")
            split = Split.open(replace(config, path=f"{server.url}/now"), "train")
            assert split.count == count
            assert split.sample(count - 1).key == f"{count - 1:04d}.png"
            (tmp_path / "now").rename(tmp_path / f"old{count}")


def test_a_cache_that_cannot_hold_a_shard(config: DataConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"cache_gigabytes=1e-06 is less than a shard"):
        Split.open(replace(config, cache_gigabytes=1e-6), "train")


def test_a_cache_that_cannot_hold_a_window_is_reported(
    config: DataConfig,
    shards: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = max(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    Split.open(replace(config, cache_gigabytes=size * 1.5e-9), "train")
    assert "raise it, lower data.shuffle_window or take data.remote_reads=ranges" in caplog.text
    caplog.clear()
    disk = shutil.disk_usage(shards)._replace(total=10 * size, free=2 * size)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: disk)
        Split.open(config, "train")
    assert f"the disk of {config.cache} has room for" in caplog.text
    assert "name a folder on a larger one with data.cache=, lower data.shuffle" in caplog.text
    caplog.clear()
    Split.open(config, "train")
    assert not caplog.records
