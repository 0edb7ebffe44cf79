"""Shards fetched before they are needed: the same batches, and nothing sooner makes room."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.loader import Loader
from t2i_hpc.data.sampler import RankSlice, Sampler
from t2i_hpc.data.split import Split
from t2i_hpc.data.storage import fetching, local_shards
from t2i_hpc.data.storage.cache import Cache, Heartbeat
from t2i_hpc.data.storage.eviction import Plan
from t2i_hpc.data.storage.fetching import Server
from t2i_hpc.data.storage.local_shards import LocalStorage, is_shared
from t2i_hpc.data.training_data import indexed_loader, look_ahead
from tests.support.servers import FileServer, cut, first_times
from tests.support.streams import assert_expected, stream_of

COPY = bytes(100)


def stored(stream: IO[bytes], _: Heartbeat) -> None:
    stream.write(COPY)


def names(cache: Cache) -> list[str]:
    return sorted(path.stem for path in (cache.folder / "shards").iterdir())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Room for three copies, all taken; c was used last."""
    cache = Cache(str(tmp_path), 3 * len(COPY), 1.0)
    for age, name in enumerate("abc"):
        os.close(cache.open(f"{name}.tar", len(COPY), stored))
        os.utime(tmp_path / "shards" / f"{name}.tar", (age, age))
    return cache


def planned(cache: Cache, key: str, *copies: str) -> Plan:
    plan = Plan.claim(cache.folder / "plans", key)
    assert plan is not None
    plan.publish([], [f"{name}.tar" for name in copies])
    return plan


@pytest.mark.parametrize(
    ("plans", "left"),
    [
        ([], "bcd"),  # nobody knows: the one used longest ago goes
        (["acb"], "acd"),  # needed last
        (["ab"], "abd"),  # not planned
        (["acb", "ba"], "abd"),  # by the job that needs it first
    ],
)
def test_what_is_needed_last_makes_room(cache: Cache, plans: list[str], left: str) -> None:
    held = [planned(cache, str(number), *plan) for number, plan in enumerate(plans)]
    os.close(cache.open("d.tar", len(COPY), stored))
    assert names(cache) == list(left)
    assert len(held) == len(plans)


def test_a_prefetch_leaves_what_is_needed_sooner(cache: Cache) -> None:
    plan = planned(cache, "job", *"abcde")
    assert not cache.bring("d.tar", len(COPY), stored, 3)
    assert names(cache) == list("abc")
    plan.publish([], [f"{name}.tar" for name in "bcd"])
    assert cache.bring("d.tar", len(COPY), stored, 2)
    assert names(cache) == list("bcd")


def test_one_of_a_job_prefetches_and_the_dead_are_replaced(cache: Cache) -> None:
    plan = planned(cache, "job", "a")
    assert Plan.claim(cache.folder / "plans", "job") is None
    assert cache.plans.needs() == {"a.tar": 0}
    plan.close()
    assert cache.plans.needs() == {}
    assert not list((cache.folder / "plans").iterdir())
    assert Plan.claim(cache.folder / "plans", "job") is not None


def test_windows_are_those_of_the_samples() -> None:
    sampler = Sampler([3, 5, 4, 2, 6, 1, 7], 5, 2, group=4)
    first = np.cumsum([0, 3, 5, 4, 2, 6, 1, 7])
    for start in (0, 9, 28, 40):
        windows = list(itertools.islice(sampler.windows(start), 7))
        assert windows[0].begin <= start < windows[1].begin
        for window, following in itertools.pairwise(windows):
            samples = sampler.samples(range(window.begin, following.begin))
            shards = np.searchsorted(first, samples, side="right") - 1
            assert set(shards.tolist()) == set(window.shards)


def taken(loader: Loader, count: int) -> Iterator[Batch]:
    batches = loader.batches(0)
    yield from itertools.islice(batches, count)
    batches.close()  # type: ignore[attr-defined]


def test_batches_are_the_same_though_the_prefetcher_is_killed(
    server: FileServer, config: DataConfig, expected: list[Batch]
) -> None:
    loader = stream_of(replace(config, workers=1))
    found = taken(loader, len(expected))
    batches = [next(found)]
    assert loader._prefetcher is not None
    process = loader._prefetcher._process
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    batches += found
    assert_expected(batches, expected)
    process.join()
    cache = Cache(config.cache, 1 << 30, 1.0)
    assert cache.plans.needs() == {}  # its lock died with it
    os.close(cache.open("aa.tar", len(COPY), stored))
    assert not list((cache.folder / "shards").glob("*.part"))


def test_a_window_ahead_is_fetched_and_no_more(
    server: FileServer, config: DataConfig, shards: Path
) -> None:
    """The cache has room for a window and a half of two shards: what is read now stays."""
    size = max(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    config = replace(config, workers=1, cache_gigabytes=size * 3.2e-9)
    loader = indexed_loader(config, Split.open(config, "train"), 16, 3, RankSlice(1))
    for _ in taken(loader, 66):  # three epochs
        copies = (Path(config.cache) / "shards").glob("*.tar")
        assert sum(path.stat().st_size for path in copies) <= size * 3.2
    counts = loader.reads()
    assert counts.found + counts.missed >= 66
    tars = sum(count for path, count in server.asked.items() if path.endswith(".tar"))
    assert tars <= 3 * 5 + 4  # each shard once an epoch, though not all of them fit


def test_ranks_of_a_job_share_a_prefetcher_and_other_jobs_do_not(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Split.open(config, "train")
    order = Sampler(split.manifest.counts, 1, 2)

    def key(rank: int, world: int) -> str:
        found = look_ahead(config, [split], order, 1, RankSlice(8, rank, world))
        assert found is not None
        return found.key

    assert key(0, 2) == key(1, 2) != key(0, 1)
    before = key(0, 2)
    monkeypatch.setenv("MASTER_PORT", "1")
    assert key(0, 2) != before
    off = replace(config, prefetch=0)
    assert look_ahead(off, [split], order, 1, RankSlice(8)) is None


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_comes_in_order_by_many_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer, ranges: bool
) -> None:
    content = np.random.default_rng(0).bytes(100_001)
    (server.folder / "long").write_bytes(content)
    monkeypatch.setattr(fetching, "_SMALLEST", 1000)
    monkeypatch.setattr(fetching, "_PROBE", 500)
    server.ranges, server.fault = ranges, first_times(3, "long", cut)
    found = b"".join(Server(20.0, 4).read_file(f"{server.url}/long", len(content)))
    assert found == content
    (server.folder / "long").unlink()


MOUNTS = """\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 0:40 / /home rw - nfs4 host:/home rw
23 22 0:41 / /home/me/disk rw - xfs /dev/sdb rw
24 21 0:42 / /far\\040away rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("path", "shared"),
    [
        ("/data/x", False),
        ("/home/me/x", True),
        ("/home/me/disk/x", False),
        ("/homes/x", False),
        ("/far away/x", True),
    ],
)
def test_file_systems_that_are_shared(tmp_path: Path, path: str, shared: bool) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert is_shared(Path(path), tmp_path / "mountinfo") is shared


def test_the_kernel_is_told_of_windows_on_shared_file_systems(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(path=str(shards), cache=str(tmp_path), shuffle_window=2, max_tokens=6)
    split = Split.open(config, "train")
    order = Sampler(split.manifest.counts, 1, 2)
    assert look_ahead(config, [split], order, 1, RankSlice(8)) is None
    monkeypatch.setattr(local_shards, "is_shared", lambda path: True)
    split = Split.open(config, "train")
    assert look_ahead(config, [split], order, 1, RankSlice(8)) is not None
    told: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: told.append(arguments[3]))
    storage = split.storage
    assert isinstance(storage, LocalStorage)
    assert storage.bring(3, 0)
    assert told == [os.POSIX_FADV_WILLNEED]
    assert storage.is_here(3)
    assert not storage.is_here(2)
