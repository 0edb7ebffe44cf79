"""Shards on web servers that die, hang, cut and lie: the same batches, or one sentence."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Batch
from tests.support.servers import (
    FileServer,
    Handler,
    MortalServer,
    cut,
    fail,
    first_times,
    hang,
)
from tests.support.streams import assert_expected, stream_of, take

READS = ["shards", "ranges"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("reads", READS)
def test_a_server_gives_the_batches_of_the_folder(
    server: FileServer, config: DataConfig, expected: list[Batch], reads: str, workers: int
) -> None:
    assert_expected(take(replace(config, remote_reads=reads, workers=workers)), expected)
    if reads == "shards":
        tars = {path: count for path, count in server.asked.items() if path.endswith(".tar")}
        assert tars == {f"train/{number:06d}.tar": 1 for number in range(5)}


@pytest.mark.parametrize("reads", READS)
def test_a_server_that_knows_no_ranges(
    server: FileServer, config: DataConfig, expected: list[Batch], reads: str
) -> None:
    server.ranges = False
    assert_expected(take(replace(config, remote_reads=reads)), expected)


def test_a_second_start_fetches_only_what_may_have_changed(
    server: FileServer, config: DataConfig, expected: list[Batch]
) -> None:
    take(config)
    server.asked.clear()
    assert_expected(take(config), expected)
    assert server.asked == {"train/manifest.json": 1, "vocabulary.json": 1}


@pytest.fixture
def mortal(shards: Path) -> Iterator[MortalServer]:
    server = MortalServer(shards)
    yield server
    server.kill()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("reads", READS)
def test_a_server_that_dies_and_comes_back(
    mortal: MortalServer, config: DataConfig, expected: list[Batch], reads: str, workers: int
) -> None:
    # Without workers readers fetch by themselves, so that it is missed.
    config = replace(config, prefetch=workers and 1)
    config = replace(config, path=mortal.url, remote_reads=reads, workers=workers)
    batches = stream_of(config).batches(0)
    found = [next(batches)]
    mortal.kill()
    returns = threading.Timer(0.3, mortal.start)
    returns.start()
    found += itertools.islice(batches, 5)
    batches.close()  # type: ignore[attr-defined]
    returns.join()
    assert_expected(found, expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("reads", READS)
def test_a_server_that_dies_for_good(
    mortal: MortalServer, config: DataConfig, reads: str, workers: int
) -> None:
    config = replace(
        config, path=mortal.url, remote_reads=reads, workers=workers, retry_seconds=0.5
    )
    batches = stream_of(config).batches(0)
    mortal.kill()
    with pytest.raises(DataError, match=r"cannot read http://127.*\.tar .*retry_seconds") as caught:
        list(itertools.islice(batches, 20))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reads", READS)
def test_a_server_that_hangs(server: FileServer, config: DataConfig, reads: str) -> None:
    stream = stream_of(replace(config, remote_reads=reads, retry_seconds=0.5))
    server.fault = lambda handler, path: hang(handler)
    with pytest.raises(DataError, match=r"\.tar \(no answer in time"):
        next(stream.batches(0))


def refuse(handler: Handler) -> bool:
    return fail(handler, 404)


@pytest.mark.parametrize("fault", [fail, cut, refuse], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", [".tar", "manifest.json", "shards.npy", "index.npy", "ry.json"])
def test_a_fault_that_passes(
    server: FileServer,
    config: DataConfig,
    expected: list[Batch],
    name: str,
    fault: Callable[[Handler], bool],
) -> None:
    server.fault = first_times(1, name, fault)
    assert_expected(take(config), expected)


@pytest.mark.parametrize("fault", [fail, cut], ids=lambda fault: fault.__name__)
def test_ranges_outlive_faults_that_pass(
    server: FileServer,
    config: DataConfig,
    expected: list[Batch],
    fault: Callable[[Handler], bool],
) -> None:
    server.fault = first_times(3, ".tar", fault)
    assert_expected(take(replace(config, remote_reads="ranges")), expected)
