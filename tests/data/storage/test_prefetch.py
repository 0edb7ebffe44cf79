"""Shards fetched before they are needed: the same batches, and nothing sooner makes room."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.loader import Loader
from t2i_hpc.data.sampler import RankSlice, Sampler
from t2i_hpc.data.split import Split
from t2i_hpc.data.storage import cache as cache_module
from t2i_hpc.data.storage import eviction, fetching, local_shards, prefetch, remote_tables
from t2i_hpc.data.storage.cache import Cache, Heartbeat
from t2i_hpc.data.storage.eviction import Plan
from t2i_hpc.data.storage.fetching import Server
from t2i_hpc.data.storage.local_shards import LocalStorage, is_shared
from t2i_hpc.data.storage.prefetch import Prefetcher, _Work
from t2i_hpc.data.training_data import indexed_loader, look_ahead
from tests.data.storage.conftest import LONG
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


def copies(config: DataConfig, pattern: str = "*") -> list[Path]:
    return sorted((Path(config.cache) / "shards").glob(pattern))


def await_that(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_window_is_there_before_it_is_asked_for(
    server: FileServer, config: DataConfig, expected: list[Batch], workers: int
) -> None:
    """It begins elsewhere than was likely, as after a checkpoint that cannot be read."""
    loader = stream_of(replace(config, workers=workers))
    loader.start(8)
    await_that(lambda: copies(config))
    assert sum(loader.reads()[:2]) == 0
    assert_expected(list(taken(loader, len(expected))), expected)
    assert set(server.asked.values()) == {1}


def test_a_prefetcher_does_not_wait_for_itself(
    server: FileServer, config: DataConfig, expected: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fetches rows that its own plan says are coming; rows that rot are fetched again."""
    monkeypatch.setattr(remote_tables, "WHOLE", 256)
    monkeypatch.setattr(eviction, "FRESH", 1e9)  # until which its plan is believed
    split = Split.open(replace(config, workers=1), "train")
    loader = indexed_loader(config, split, 16, 3, RankSlice(8), answer_within=LONG)
    assert_expected(list(taken(loader, len(expected))), expected)
    for path in copies(config, "*.rows"):
        path.write_bytes(b"")
    assert_expected(list(taken(stream_of(config), len(expected))), expected)


def test_another_rank_replaces_a_prefetcher_that_is_killed(
    server: FileServer, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "_STANDBY", 0.01)
    split = Split.open(config, "train")
    order = Sampler(split.manifest.counts, 1, 2)
    lookahead = look_ahead(config, [split], order, 1, RankSlice(8, 0, 2))
    assert lookahead is not None
    ranks = [Prefetcher(lookahead), Prefetcher(lookahead)]
    try:
        ranks[0].move(0, 0)
        await_that(lambda: len(copies(config, "*.tar")) == 4)  # its window and the next
        ranks[0].end()
        ranks[1].move(21, 21)
        await_that(lambda: len(copies(config, "*.tar")) == 5)
    finally:
        for rank in ranks:
            rank.end()


def test_two_jobs_share_a_cache(server: FileServer, config: DataConfig, shards: Path) -> None:
    """It has room for one job's window and the next, but not for those of both."""
    size = max(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    config = replace(config, cache_gigabytes=size * 3.2e-9)
    local = replace(config, path=str(shards))
    jobs = []
    for seed in (1, 2):
        pair = (
            indexed_loader(one, Split.open(one, "train"), 16, seed, RankSlice(8)).batches(0)
            for one in (config, local)
        )
        jobs.append(tuple(pair))
    for remote, expected in [*jobs, *jobs] * 4:
        assert_expected([next(remote)], [next(expected)])
        assert sum(path.stat().st_size for path in copies(config)) <= size * 3.2
    for remote, _ in jobs:
        remote.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("shards_of_room", [0.5, 1.5])
def test_a_disk_without_room_for_a_window(
    config: DataConfig,
    shards: Path,
    expected: list[Batch],
    monkeypatch: pytest.MonkeyPatch,
    shards_of_room: float,
) -> None:
    size = max(path.stat().st_size for path in (shards / "train").glob("*.tar"))

    def free(_: Cache) -> int:
        return int(size * shards_of_room) - sum(path.stat().st_size for path in copies(config))

    monkeypatch.setattr(Cache, "_free", free)
    monkeypatch.setattr(Cache, "_spare", lambda _: 0)
    monkeypatch.setattr(cache_module, "_SETTLE", 0.1)
    if shards_of_room > 1:
        assert_expected(list(taken(stream_of(config), 2)), expected[:2])
        return
    with pytest.raises(DataError, match=r"the disk of \S+ has .* left, too few for a shard of"):
        list(taken(stream_of(config), 1))


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
    told: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: told.append(arguments[1:]))
    monkeypatch.setattr(local_shards, "_PIECE", 4096)
    storage = split.storage
    assert isinstance(storage, LocalStorage)
    assert storage.bring(3, 0)
    size = split.manifest.shard(3).bytes
    assert told == [(begin, 4096, os.POSIX_FADV_WILLNEED) for begin in range(0, size, 4096)]
    assert storage.is_here(3)
    assert not storage.is_here(2)


def test_the_kernel_is_told_once_an_epoch(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_shards, "is_shared", lambda path: True)
    told: list[int] = []
    bring = LocalStorage.bring

    def counted(storage: LocalStorage, shard: int, need: int) -> bool:
        told.append(shard)
        return bring(storage, shard, need)

    monkeypatch.setattr(LocalStorage, "bring", counted)
    config = DataConfig(path=str(shards), cache=str(tmp_path), shuffle_window=1)
    split = Split.open(config, "train")
    order = Sampler(split.manifest.counts, 1, 1)
    lookahead = look_ahead(config, [split], order, 1, RankSlice(8))
    plan = Plan.claim(tmp_path / "plans", "job")
    assert lookahead is not None
    assert plan is not None
    shared = np.zeros(4, np.int64)
    work = _Work(lookahead, shared, os.getppid())
    with ThreadPoolExecutor(1) as pool:
        for position in range(3 * 22):
            shared[:2] = position
            if work._is_due():
                work._look_ahead(plan, pool)
            work._submit(pool)
            wait(work._in_flight.values())
            work._harvest()
    shards_of = [window.shards[0] for window in itertools.islice(order.windows(0), 3 * 5 + 1)]
    # One that is last of an epoch and first of the next is told once.
    assert told == [shard for shard, _ in itertools.groupby(shards_of)]
