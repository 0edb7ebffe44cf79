"""Draw the next batch in a thread while the last one is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def one_ahead(
    draw: Callable[[ItemT], ResultT], items: Iterable[ItemT]
) -> Iterator[tuple[ItemT, ResultT]]:
    """Give each item and what `draw` makes of it, in order; `draw` is called by one thread.

    At most one result waits. An error of `draw` is raised where its result would come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="draw") as pool:
        waiting: tuple[ItemT, Future[ResultT]] | None = None
        for item in items:
            coming = item, pool.submit(draw, item)
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting:
            yield waiting[0], waiting[1].result()
