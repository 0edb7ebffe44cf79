"""Images on their way to the detector: decoded by threads, prefetched, on a stream of their own.

While the detector computes, one thread makes the next batch. Of stored images it reads the files in
order, and a pool of threads decodes and resizes them. On a GPU all of that thread's work (generator
and copies) is on a stream of its own, so that neither waits for the other's kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from t2i_hpc.evaluation.collectors import FeatureBatch
from t2i_hpc.evaluation.detectors.detector import Detector, exact_inference, to_device
from t2i_hpc.sampling.image_files import ImagesOf

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass
class Waiting:
    """How long the detector waited for images.

    Attributes:
        seconds: without images.
        total: seconds in all.
    """

    seconds: float = 0.0
    total: float = 0.0

    @property
    def share(self) -> float:
        """Share of the time, in [0, 1]."""
        return self.seconds / self.total if self.total else 0.0


def extract_features(
    images_of: ImagesOf,
    detector: Detector,
    numbers: range,
    batch_size: int,
    add: Callable[[FeatureBatch], None],
) -> Waiting:
    """Give the features of the images `numbers` to `add`, batch by batch.

    The next batch is generated, or decoded, while the detector computes.

    Returns:
        how long the detector waited for images.

    Raises:
        ValueError: the range begins inside a batch.
    """
    if numbers and numbers.start % batch_size:
        raise ValueError(f"images {numbers} begin inside a batch of {batch_size}")
    firsts = range(numbers.start, numbers.stop, batch_size)
    waiting, began = Waiting(), time.perf_counter()
    # Set here, not in the detector alone: the flags are the process's, and a batch is generated
    # in another thread meanwhile.
    with exact_inference(), _own_stream(detector.device) as on_device:
        batches = prefetch(lambda n: on_device(images_of, range(n, n + batch_size)), firsts)
        for first, ready in _timed(batches, waiting):
            images = ready()
            wanted = min(batch_size, numbers.stop - first)
            features = detector.features(images)
            counted = range(first, first + wanted)
            logits = detector.logits(features, images)[:wanted]
            add(FeatureBatch(counted, images[:wanted], features[:wanted], logits))
    waiting.total = time.perf_counter() - began
    return waiting


def prefetch(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT]
) -> Iterator[tuple[ItemT, ResultT]]:
    """Give each item and its result, in order; one thread calls `function`, prefetching one item.

    At most one result waits. An error is raised where its result would come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        waiting: tuple[ItemT, Future[ResultT]] | None = None
        for item in items:
            coming = item, pool.submit(function, item)
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting:
            yield waiting[0], waiting[1].result()


def pooled(work: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> list[ResultT]:
    """Return the results in order, of as many threads as torch has; `items` are made in this one.

    Decoders and Pillow's filters release the interpreter's lock.
    """
    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode") as pool:
        return list(pool.map(work, items))


OnDevice = Callable[[ImagesOf, range], Callable[[], Tensor]]
"""Makes images in the thread that prefetches; what it returns gives them to the detector's."""


@contextmanager
def _own_stream(device: torch.device) -> Iterator[OnDevice]:
    """Give what makes images by number: on a GPU, by a stream beside the detector's."""
    if device.type != "cuda":

        def here(images_of: ImagesOf, numbers: range) -> Callable[[], Tensor]:
            images = images_of(numbers)
            return lambda: images

        yield here
        return
    detecting, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(detecting)  # weights may still be on their way

    def beside(images_of: ImagesOf, numbers: range) -> Callable[[], Tensor]:
        with torch.cuda.stream(stream):
            images = to_device(images_of(numbers), device)
            made = stream.record_event()

        def taken() -> Tensor:
            detecting.wait_event(made)  # the detector's stream waits, not this thread
            images.record_stream(detecting)  # so the memory is not given away before it is read
            return images

        return taken

    try:
        yield beside
    finally:
        detecting.wait_stream(stream)


def _timed(batches: Iterator[ItemT], waiting: Waiting) -> Iterator[ItemT]:
    """Give the batches, and add up how long each was waited for."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        waiting.seconds += time.perf_counter() - began
        if batch is None:
            return
        yield batch
