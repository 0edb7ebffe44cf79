"""Shards on a server, and what they give when read from their folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Batch
from tests.support.data import make_shards
from tests.support.servers import FileServer, serving
from tests.support.streams import take

LONG = 60.0  # seconds; nothing takes as long unless it is broken


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("remote"), count=22, size=24, shard_samples=5)


@pytest.fixture
def server(shards: Path) -> Iterator[FileServer]:
    with serving(shards) as server:
        yield server


@pytest.fixture
def config(server: FileServer, tmp_path: Path) -> DataConfig:
    return DataConfig(
        path=server.url,
        cache=str(tmp_path / "cache"),
        retry_seconds=LONG,
        max_tokens=6,
        shuffle_window=2,
        workers=0,
    )


@pytest.fixture(scope="module")
def expected(shards: Path) -> list[Batch]:
    """The first batches as they are read from the folder."""
    return take(DataConfig(path=str(shards), max_tokens=6, shuffle_window=2, workers=0))
