"""Batches that processes make ahead: whole, in order, and never a hang."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from t2i_hpc.common.errors import DataError, RunError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Batch, BatchPlan
from t2i_hpc.data.images import Pixels
from t2i_hpc.data.loader import Loader
from t2i_hpc.data.sampler import RankSlice, Sampler
from t2i_hpc.data.split import Split
from t2i_hpc.data.tar_reader import StoredSample
from t2i_hpc.data.training_data import IndexedBatches, fit_to_timeout
from tests.support.data import make_shards

BATCH, WITHIN = 4, 60.0


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    shards = make_shards(tmp_path_factory.mktemp("loader"), count=20, size=16)
    return Split.open(DataConfig(path=str(shards)), "train")


def positions(number: int) -> range:
    return range(number * BATCH, number * BATCH + BATCH)


def batches_of(split: Split) -> IndexedBatches:
    config = DataConfig(max_tokens=5, resize_ratio=1.0)
    return IndexedBatches(split, Sampler(split.manifest.counts, 1, 8), config, 16, 1)


class Troubled(IndexedBatches):
    """Batches that do something first, when batch number 5 is made."""

    def __init__(self, split: Split, trouble: Callable[[], None]) -> None:
        config = DataConfig(max_tokens=5, resize_ratio=1.0)
        super().__init__(split, Sampler(split.manifest.counts, 1, 8), config, 16, 1)
        self.trouble, self.made = trouble, 0

    def _whole(self, sample: int, stored: StoredSample) -> Pixels:
        self.made += 1
        if self.made == BATCH * 2 + 1:  # batch 2 of one of two workers
            self.trouble()
        return super()._whole(sample, stored)


def load(
    maker: IndexedBatches, workers: int = 0, answer_within: float = WITHIN, start: int = 0
) -> Iterator[Batch]:
    return Loader(lambda _: maker, RankSlice(BATCH), workers, answer_within).batches(start)


def equal(one: Batch, two: Batch) -> bool:
    names = ("images", "tokens", "lengths", "classes", "positions")
    same = all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)
    return same and (one.captions, one.keys) == (two.captions, two.keys)


def test_processes_make_the_batches_that_one_process_makes(split: Split) -> None:
    here = list(itertools.islice(load(batches_of(split)), 20))
    assert all(batch.positions.tolist() == list(positions(n)) for n, batch in enumerate(here))
    for workers in (1, 2, 3):
        ahead = load(batches_of(split), workers)
        kept = list(itertools.islice(ahead, 20))  # slots were filled many times meanwhile
        assert all(itertools.starmap(equal, zip(kept, here, strict=True)))
        ahead.close()  # type: ignore[attr-defined]
        assert not multiprocessing.active_children()


def test_processes_that_wait_begin_where_they_are_reported(split: Split) -> None:
    loader = Loader(lambda _: batches_of(split), RankSlice(BATCH), 2, WITHIN)
    loader.start()
    waiting = multiprocessing.active_children()
    assert len(waiting) == 2
    batches = loader.batches(12)
    assert [next(batches).positions[0] for _ in range(3)] == [12, 16, 20]
    assert multiprocessing.active_children() == waiting
    batches.close()  # type: ignore[attr-defined]
    assert next(loader.batches(28)).positions[0] == 28  # by new ones
    loader.start()
    loader.close()
    assert not multiprocessing.active_children()


def test_images_are_shown_channels_first_without_a_copy(split: Split) -> None:
    batch = next(load(batches_of(split)))
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.stride() == (16 * 16 * 3, 1, 16 * 3, 3)


def troubled(
    split: Split, trouble: Callable[[], None], answer_within: float = WITHIN
) -> Iterator[Batch]:
    return load(Troubled(split, trouble), 2, answer_within)


def raise_error(error: Exception) -> Callable[[], None]:
    def trouble() -> None:
        raise error

    return trouble


def test_an_error_comes_after_the_batches_before_it(split: Split) -> None:
    batches = troubled(split, raise_error(DataError("sample 7 is damaged")))
    for number in range(4):
        assert next(batches).positions.tolist() == list(positions(number))
    with pytest.raises(DataError, match=r"^sample 7 is damaged$"):
        next(batches)
    assert not multiprocessing.active_children()


def test_a_fault_of_ours_shows_its_trace(split: Split) -> None:
    batches = troubled(split, raise_error(ZeroDivisionError("of ours")))
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*ZeroDivisionError: of ours"):
        list(itertools.islice(batches, 6))


def test_a_fault_in_the_plan_shows_its_trace(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = batches_of(split)

    def faulty(_: object) -> Iterator[BatchPlan]:
        yield from itertools.islice(batches_of(split).plan(map(positions, range(9))), 2)
        raise ZeroDivisionError("in the plan")

    monkeypatch.setattr(samples, "plan", faulty)
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*ZeroDivisionError: in the plan"):
        list(itertools.islice(load(samples, 2), 6))


@pytest.mark.parametrize(("ranks", "retry_seconds"), [(1, 120.0), (2, 120.0), (2, 3.0), (2, 900.0)])
def test_a_rank_reports_its_error_before_others_time_out(ranks: int, retry_seconds: float) -> None:
    config, answer_within = fit_to_timeout(DataConfig(retry_seconds=retry_seconds), 600.0, ranks)
    assert config.retry_seconds < answer_within
    if ranks > 1:
        assert answer_within < 600.0
        assert config.retry_seconds == min(retry_seconds, 300.0)


def test_the_reads_of_a_batch_share_the_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sample of a batch is read at the third try, which takes most of the seconds."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    shards = make_shards(tmp_path, count=8, size=16)
    split = Split.open(DataConfig(path=str(shards), retry_seconds=100.0), "train")
    pread, tries = os.pread, itertools.count(1)

    def failing(*arguments: int) -> bytes:
        if next(tries) % 3:
            clock[0] += 20.0
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(DataError, match=r"cannot read .*\.tar"):
        next(load(batches_of(split)))
    assert clock[0] < 160.0  # 100 s and a last try, not 100 s for each of the four


@pytest.mark.parametrize("name", ["SIGKILL", "SIGXCPU"])
def test_a_worker_that_dies_is_reported_not_waited_for(split: Split, name: str) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.Signals[name])

    batches = troubled(split, die)
    with pytest.raises(RunError, match=rf"died of {name}: if the kernel killed it for lack of mem"):
        list(itertools.islice(batches, 6))
    assert not multiprocessing.active_children()


def test_a_worker_that_exits_is_reported(split: Split) -> None:
    batches = troubled(split, lambda: os._exit(7))
    with pytest.raises(RunError, match="died of exit code 7"):
        list(itertools.islice(batches, 6))


def test_a_worker_that_hangs_is_given_up(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_hpc.data.loader._STEP", 0.2)
    batches = troubled(split, lambda: time.sleep(1000), answer_within=1.0)
    with pytest.raises(RunError, match=r"has made no batch for 1 seconds: see whether the file"):
        list(itertools.islice(batches, 6))
    for child in multiprocessing.active_children():  # killed; a busy machine takes its time
        child.join(60)
    assert not multiprocessing.active_children()


def test_memory_is_used_again_and_has_no_name(split: Split) -> None:
    before = set(Path("/dev/shm").iterdir())
    batches = load(batches_of(split), 2)
    next(batches)

    def shared() -> list[str]:
        maps = Path("/proc/self/maps").read_text()
        return re.findall(r"^\S+ rw-s .* /dev/zero", maps, re.MULTILINE)

    begun = shared()
    for _ in range(50):
        next(batches)
    assert len(begun) > 0
    # Those of earlier tests may be given back meanwhile, by whatever collects garbage.
    assert set(shared()) <= set(begun)
    assert set(Path("/dev/shm").iterdir()) <= before
    batches.close()  # type: ignore[attr-defined]
