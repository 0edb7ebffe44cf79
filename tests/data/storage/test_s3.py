"""Shards in a bucket, on a server that speaks S3."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.commands import build
from t2i_hpc.data.build.split_writer import build_index
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.storage.object_stores import Bucket, options_of, upload_split, use_access
from t2i_hpc.data.training_data import indexed_loader
from tests.support.data import make_image_folder, make_shards
from tests.support.tars import foreign, write_tars

moto = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("s3"), count=12, size=24, shard_samples=5)


@pytest.fixture(scope="module")
def bucket(shards: Path) -> Iterator[str]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "tester")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = s3fs.S3FileSystem()
        client.mkdir("images")
        client.put(str(shards), "images/shards", recursive=True)
        yield "s3://images/shards"
    server.stop()


@pytest.mark.parametrize("reads", ["shards", "ranges"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bucket_gives_the_batches_of_the_folder(
    shards: Path, bucket: str, tmp_path: Path, reads: str, workers: int
) -> None:
    found = []
    for path in (str(shards), bucket):
        config = DataConfig(
            path=path, cache=str(tmp_path), remote_reads=reads, workers=workers, retry_seconds=120
        )
        batches = indexed_loader(config, Split.open(config, "train"), 16, 3, RankSlice(8)).batches(
            0
        )
        found.append(list(itertools.islice(batches, 4)))
        batches.close()  # type: ignore[attr-defined]
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert ours.keys == theirs.keys


def test_a_split_goes_into_a_bucket(shards: Path, bucket: str, tmp_path: Path) -> None:
    """The manifest comes last; what was copied before an interruption is not copied again."""
    manifest, copied = Manifest.load(shards / "train"), Bucket("s3://images/copy")
    put, put_before = copied.put, list[str]()

    def cut(path: Path, name: str) -> None:
        if name.endswith("shards.npy"):
            raise OSError("the link is down")
        put_before.append(name)
        put(path, name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copied, "put", cut)
        with pytest.raises(DataError, match=r"s3://images/copy \(the link is down\): the same"):
            upload_split(manifest, copied, lambda _: None)
    with pytest.raises(DataError, match=r"manifest\.json \(there is no such file"):
        Split.open(
            DataConfig(path="s3://images/copy", cache=str(tmp_path), retry_seconds=60), "train"
        )
    again, told = list[str](), list[int]()

    def noted(path: Path, name: str) -> None:
        again.append(name)
        put(path, name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copied, "put", noted)
        upload_split(manifest, copied, told.append)
    assert not {*again} & {*put_before}
    assert sum(told) == sum(path.stat().st_size for path in manifest.folder.iterdir())
    split = Split.open(DataConfig(path="s3://images/copy", cache=str(tmp_path)), "train")
    assert split.manifest.digest == manifest.digest
    assert not {*copied.sizes("train")} - {path.name for path in manifest.folder.iterdir()}
    upload_split(manifest, copied, told.append)  # is there
    changed = replace(manifest, folder=tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"{}")
    (tmp_path.parent / "vocabulary.json").write_bytes((shards / "vocabulary.json").read_bytes())
    with pytest.raises(DataError, match="s3://images/copy/train is another split"):
        upload_split(changed, copied, told.append)


def test_a_build_goes_into_a_bucket_of_a_named_server(bucket: str, tmp_path: Path) -> None:
    make_image_folder(tmp_path / "in", range(4), 24)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    config = ShardsConfig(
        images=str(tmp_path / "in"), output="s3://images/built", size=24, workers=1
    )
    with pytest.raises(ConfigurationError, match="output= is an address: add staging=DIR"):
        build(config)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL_S3", "")
        build(replace(config, staging=str(tmp_path / "here"), endpoint=endpoint))
        assert os.environ["AWS_ENDPOINT_URL_S3"] == endpoint
        build(replace(config, staging=str(tmp_path / "here")))  # resumes where all is done
    split = Split.open(DataConfig(path="s3://images/built", cache=str(tmp_path)), "train")
    assert split.count == 4


def test_tars_in_a_bucket_are_indexed_where_they_lie(bucket: str, tmp_path: Path) -> None:
    local = write_tars(tmp_path / "tars", [foreign(number) for number in range(6)], 3)
    s3fs.S3FileSystem().put(str(tmp_path / "tars"), "images/tars", recursive=True)
    built = build_index(
        ShardsConfig(
            source="webdataset",
            urls=["s3://images/tars/{0..1}.tar"],
            index=str(tmp_path / "index"),
            workers=1,
        )
    )
    assert (built.manifest.sample_count, local.endswith("{0..1}.tar")) == (6, True)
    config = DataConfig(path=str(tmp_path / "index"), cache=str(tmp_path / "cache"))
    samples = [Split.open(config, "train").sample(number) for number in (0, 5)]
    assert [one.key for one in samples] == ["0/0000", "1/0005"]
    assert samples[1].image == foreign(5)["png"]


def test_access_is_told_to_every_process() -> None:
    with pytest.MonkeyPatch.context() as patched:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "T2I_HPC_ANONYMOUS"):
            patched.setenv(name, "")
        assert options_of("s3") == {"anon": False}
        use_access(DataConfig(endpoint="http://minio:9000", anonymous=True))
        assert options_of("s3") == {"endpoint_url": "http://minio:9000", "anon": True}
        assert options_of("gs") == {"token": "anon"}
        assert options_of("https") == {}


def test_a_key_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    config = DataConfig(path=bucket, cache=str(tmp_path), retry_seconds=120)
    with pytest.raises(DataError, match=r"s3://images/shards/trian/manifest\.json \(there is no"):
        Split.open(config, "trian")
