"""One process a node that brings shards near before they are read.

The order of samples is known, so the shards of the windows ahead are: those of a server are fetched
into the node's cache, several ranges at once; of those on a shared file system the kernel is told.
What is here or will be fetched now is bounded: the windows in use and `ahead` more, no more than
the cache's limit and its disk hold.

Each rank forks a prefetcher with its loader, and one of a node's works while the others wait to
replace it. It fetches for readers that know nothing of it: they wait for a copy that is coming and
fetch what is not (:mod:`t2i_hpc.data.storage.cache`), so its death costs time and nothing else. An
error is for them to report: it tries for a short while, leaves that shard to them, and goes on.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from t2i_hpc.common.errors import UserError
from t2i_hpc.common.process import stop_signals_blocked
from t2i_hpc.data.sampler import I64, Window
from t2i_hpc.data.storage.cache import Cache
from t2i_hpc.data.storage.eviction import Plan
from t2i_hpc.data.storage.local_shards import Storage

_TICK = 0.02  # seconds between two looks at where the training is
_STANDBY = 1.0  # seconds between two tries to replace a prefetcher that died
_LOOK_AGAIN = 1.0  # seconds after which a copy that was here is looked for again
_AT_ONCE = 4  # shards; each of them takes all connections that the others leave free
_PAUSE = 10.0  # seconds in which a shard that could not be had is left to its readers
_LONGEST_TRY, _PART_OF_RETRIES = 10.0, 4  # a quarter of data.retry_seconds, but no longer
_FIRST_PLAN = 0.5  # seconds that readers wait for it
_LATER = 8192  # shards beyond the windows ahead that are looked at: which copies to keep
_MEMORY_PART = 2  # half of the free memory may hold what the kernel reads ahead
_POSITION, _FRONTIER, _READY, _BYTES = range(4)
_NOT_BEGUN = -1
_Item = tuple[int, int]  # storage and shard


class Order(Protocol):
    """The order of a data set or of a mixture."""

    def windows(self, position: int) -> Iterator[Window]:
        """Yield the windows from that of a position on."""


@dataclass(frozen=True)
class Lookahead:
    """What will be read.

    Attributes:
        order: the windows, in order.
        storages: of each data set.
        cache: of the node.
        key: the same for the ranks of a job on a node, and for no other process there.
        ahead: windows to fetch beyond those in use.
    """

    order: Order
    storages: Sequence[Storage]
    cache: Cache
    key: str
    ahead: int


class Prefetcher:
    """A rank's prefetcher, forked at once; it waits to be told where the training begins."""

    def __init__(self, lookahead: Lookahead) -> None:
        self._shared: I64 = np.frombuffer(mmap.mmap(-1, 32), np.int64)
        self._shared[:] = _NOT_BEGUN, _NOT_BEGUN, 0, 0
        context = multiprocessing.get_context("fork")
        work = _Work(lookahead, self._shared, os.getpid())
        self._process: BaseProcess = context.Process(target=work.run, daemon=True)
        with stop_signals_blocked():
            self._process.start()
        self._at_exit = Finalize(None, self._process.kill, exitpriority=10)

    @property
    def bytes(self) -> int:
        """Bytes that the node's prefetcher has fetched for this job."""
        return int(self._shared[_BYTES])

    def move(self, position: int, frontier: int) -> None:
        """Tell where the training is or will begin, and how far its readers may be."""
        self._shared[_FRONTIER] = frontier
        self._shared[_POSITION] = position

    def await_plan(self) -> None:
        """Wait a moment for a plan, so that readers do not start to fetch by themselves."""
        deadline = time.monotonic() + _FIRST_PLAN
        while not self._shared[_READY] and time.monotonic() < deadline:
            time.sleep(_TICK / 10)

    def end(self) -> None:
        """Kill it: what it was fetching is swept by whoever fetches next."""
        self._at_exit()
        self._process.join(_PAUSE)


class _Work:
    """What happens in the process.

    Args:
        lookahead: what will be read.
        shared: position, frontier, whether there is a plan, bytes fetched.
        parent: the rank's process.
    """

    def __init__(self, lookahead: Lookahead, shared: I64, parent: int) -> None:
        self._ahead, self._shared, self._parent = lookahead, shared, parent
        self._storages = lookahead.storages
        self._coming: list[_Item] = []
        self._in_use = 0  # of what is coming
        self._from = 0  # position from which it was looked ahead
        self._next = 0, 0  # position and frontier at which to look ahead again
        self._in_flight: dict[_Item, Future[bool]] = {}
        self._here: set[_Item] = set()
        self._looked = 0.0  # time of the look that found them
        self._paused: dict[_Item, float] = {}

    def run(self) -> None:
        """Prefetch until the rank is gone."""
        try:
            plan = self._elected()
            if plan is not None:
                self._serve(plan)
        except Exception:  # the training goes on without
            logging.getLogger(__name__).warning("shards are not prefetched", exc_info=True)
            self._shared[_READY] = 1
        os._exit(0)  # without waiting for requests that are under way

    def _is_wanted(self) -> bool:
        return os.getppid() == self._parent

    def _elected(self) -> Plan | None:
        """Wait until this process is the one of its job that prefetches on this node."""
        cache, key = self._ahead.cache, self._ahead.key
        while self._is_wanted():
            plan = Plan.claim(cache.folder / "plans", key)
            if plan is not None:
                return plan
            self._shared[_READY] = 1
            self._shared[_BYTES] = cache.plans.fetched(key)
            time.sleep(_STANDBY)
        return None

    def _serve(self, plan: Plan) -> None:
        for storage in self._storages:
            retry = storage.retry
            retry.seconds = min(retry.seconds / _PART_OF_RETRIES, _LONGEST_TRY)
        before = self._ahead.cache.plans.fetched(self._ahead.key)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while self._shared[_POSITION] == _NOT_BEGUN and self._is_wanted():
                time.sleep(_TICK / 10)
            while self._is_wanted():
                if self._is_due():
                    self._look_ahead(plan, pool)
                    self._shared[_READY] = 1
                self._harvest()
                self._submit(pool)
                fetched = before + sum(storage.reads.bytes for storage in self._storages)
                if fetched != self._shared[_BYTES] or not self._in_flight:
                    self._shared[_BYTES] = fetched
                    plan.progress(fetched)
                time.sleep(_TICK)
            os._exit(0)

    # --- what is needed

    def _is_due(self) -> bool:
        position, frontier = self._next
        now = time.monotonic()
        ended = [item for item, until in self._paused.items() if until < now]
        for item in ended:
            del self._paused[item]
        begin, reached = self._shared[_POSITION], self._shared[_FRONTIER]
        # It begins earlier than was expected where the newest checkpoint cannot be read.
        moved = begin < self._from or begin >= position or reached >= frontier
        return bool(moved or ended)

    def _look_ahead(self, plan: Plan, pool: ThreadPoolExecutor) -> None:
        """Find out what is needed now and what later, and publish it."""
        self._from = int(self._shared[_POSITION])
        windows = self._ahead.order.windows(self._from)
        used, ahead = self._in_use_and_ahead(windows)
        self._leave_behind({*used, *ahead})
        try:
            sizes = dict(zip([*used, *ahead], pool.map(self._copies, [*used, *ahead]), strict=True))
        except UserError:  # readers will report it
            self._coming = []
            plan.publish([], [])
            return
        self._coming, self._in_use = self._fitting(used, ahead, sizes), len(used)
        coming = [item for item in self._coming if item not in self._paused]
        names = [name for item in coming for name in sizes[item][0]]
        plan.publish(names, list(self._later(windows)))

    def _leave_behind(self, needed: set[_Item]) -> None:
        for item in set(self._coming) - needed:
            self._here.discard(item)
            self._storages[item[0]].passed(item[1])

    def _copies(self, item: _Item) -> tuple[tuple[str, ...], int]:
        return self._storages[item[0]].copies_of(item[1])

    def _in_use_and_ahead(self, windows: Iterator[Window]) -> tuple[list[_Item], list[_Item]]:
        """Return what readers may be reading, and what is in the windows that follow."""
        position, frontier = self._from, int(self._shared[_FRONTIER])
        used: dict[_Item, None] = {}
        ahead: dict[_Item, None] = {}
        turns = Counter[int]()
        after_position = after_frontier = 1 << 62
        for window in windows:
            items = dict.fromkeys((window.source, shard) for shard in window.shards)
            if window.begin > position:
                after_position = min(after_position, window.begin)
            if window.begin <= frontier:
                used |= items
                continue
            after_frontier = min(after_frontier, window.begin)
            turns[window.source] += 1
            if turns[window.source] <= self._ahead.ahead:
                ahead |= items
            elif len(turns) == len(self._storages) and min(turns.values()) > self._ahead.ahead:
                break
        self._next = after_position, after_frontier
        wanted = self._storages
        return (
            [item for item in used if wanted[item[0]].looks_ahead],
            [item for item in ahead if item not in used and wanted[item[0]].looks_ahead],
        )

    def _fitting(
        self, used: list[_Item], ahead: list[_Item], sizes: dict[_Item, Any]
    ) -> list[_Item]:
        """Return what fits into the cache and the memory: nothing if not even what is in use."""
        cache = self._ahead.cache
        room = {True: min(cache.limit, cache.room()), False: _free_memory() // _MEMORY_PART}
        fitting: list[_Item] = []
        for turn, item in enumerate([*used, *ahead]):
            names, count = sizes[item]
            room[bool(names)] -= count
            if room[bool(names)] < 0:
                return fitting if turn >= len(used) else []
            fitting.append(item)
        return fitting

    def _later(self, windows: Iterator[Window]) -> Iterator[str]:
        """Yield the names of copies that are needed after those that are coming, in order."""
        looked = since = 0  # shards at all, and since one that is new
        seen = set(self._coming)
        for window in windows:
            for shard in window.shards:
                looked, since = looked + 1, since + 1
                item = window.source, shard
                if item not in seen and self._storages[window.source].knows(shard):
                    since = 0
                    seen.add(item)
                    yield from self._copies(item)[0]
            if looked > _LATER or since > len(seen):  # or an epoch has passed
                return

    # --- bringing it

    def _harvest(self) -> None:
        """Take note of what has come, and of what could not."""
        for item in [item for item, future in self._in_flight.items() if future.done()]:
            try:
                brought = self._in_flight.pop(item).result()
            except UserError:
                brought = False
            if not brought:
                self._paused[item] = time.monotonic() + _PAUSE
                self._next = 0, 0  # publish that it is not coming

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        """Begin to bring what is needed soonest."""
        now = time.monotonic()
        if now - self._looked > _LOOK_AGAIN:
            self._here.clear()
            self._looked = now
        awaited = any(item in self._in_flight for item in self._coming[: self._in_use])
        for turn, item in enumerate(self._coming):
            if len(self._in_flight) >= _AT_ONCE:
                return
            if turn >= self._in_use and awaited:
                return  # what is waited for has all connections
            if item in self._in_flight or item in self._paused or item in self._here:
                continue
            source, shard = item
            if self._storages[source].is_here(shard):
                self._here.add(item)
            else:
                # Copies of a shard and of its rows are two names of the plan.
                self._in_flight[item] = pool.submit(self._storages[source].bring, shard, 2 * turn)


def _free_memory() -> int:
    """Return the bytes of memory that are free or hold what can be read again."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").split("\n"):
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0
