"""Shards in a bucket, on a server that speaks S3."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import indexed_loader
from tests.support.data import make_shards

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


def test_a_key_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    config = DataConfig(path=bucket, cache=str(tmp_path), retry_seconds=120)
    with pytest.raises(DataError, match=r"s3://images/shards/trian/manifest\.json \(there is no"):
        Split.open(config, "trian")
