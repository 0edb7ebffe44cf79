"""What the order of a very large data set costs: 10⁹ samples in 10⁶ shards.

    python -m benchmarks.sampler    # a second

A jump asks one sampler for one random position; hardly any two of them fall into the same group of
shards, so each shuffles its group, and in another epoch the groups too. The next positions of
a stream find both already shuffled.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.format.tables import INDEX, ROW, SHARD_ROW, SHARDS
from t2i_hpc.data.sampler import Sampler

_JUMPS = 300
_ROW = "{:<36}{:>10}{:>15}\n"


def write_manifest(folder: Path) -> None:
    """Write the manifest and the tables of 10⁹ samples in 10⁶ shards, their index a hole."""
    table = np.zeros(10**6, SHARD_ROW)
    table["count"], table["bytes"] = 1000, 5 * 10**7
    table["first"] = 1000 * np.arange(10**6)
    np.save(folder / SHARDS, table)
    np.lib.format.open_memmap(folder / INDEX, "w+", ROW, (10**9,))
    digest = sha256_of_file(folder / SHARDS)
    Manifest(folder, "big", "train", 304, 304, "jpeg", 10**9, 10**6, 5 * 10**13, digest).save()


def open_sampler(folder: Path) -> tuple[Sampler, float]:
    """Open the split and build its sampler; return the sampler and the seconds both took."""
    start = time.perf_counter()
    manifest = Manifest.load(folder, location="elsewhere")  # there are no tars to look for
    sampler = Sampler(manifest.counts, seed=1, window=8)
    return sampler, time.perf_counter() - start


def jumps(sampler: Sampler, epochs: int) -> list[float]:
    """Return the seconds of jumps to random positions of some epochs."""
    rng, seconds = np.random.default_rng(2), []
    for position in rng.integers(epochs * sampler.sample_count, size=_JUMPS).tolist():
        start = time.perf_counter()
        sampler.locate(position)
        seconds.append(time.perf_counter() - start)
    return seconds


def reads(sampler: Sampler, batch: int) -> list[float]:
    """Return the seconds of consecutive batches of positions."""
    seconds = []
    for begin in range(0, _JUMPS * batch, batch):
        start = time.perf_counter()
        sampler.samples(range(begin, begin + batch))
        seconds.append(time.perf_counter() - start)
    return seconds


def memory_of_sampler(folder: Path) -> int:
    """Return how many bytes a fresh process grows by, opening, building and jumping."""
    context = multiprocessing.get_context("fork")
    grown = context.SimpleQueue()

    def grow() -> None:
        before = _most_resident()
        jumps(open_sampler(folder)[0], 1000)
        grown.put(_most_resident() - before)

    process = context.Process(target=grow)
    process.start()
    process.join()
    return int(grown.get())


def _most_resident() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(batch: int) -> str:
    """Return the figures as lines of text."""
    with TemporaryDirectory() as name:
        write_manifest(Path(name))
        memory = memory_of_sampler(Path(name))
        return _table(batch, Path(name), memory)


def _table(batch: int, folder: Path, memory: int) -> str:
    sampler, ready = open_sampler(folder)
    timed = {
        "jump in the same epoch, µs": jumps(sampler, 1),
        "jump to another epoch, µs": jumps(sampler, 1000),
        f"next {batch} positions, µs": reads(sampler, batch),
    }
    lines = [_ROW.format("order of 10⁹ samples, 10⁶ shards", "median", "99 of 100")]
    lines.append(_ROW.format("split open and sampler ready, s", f"{ready:.3f}", ""))
    lines.append(_ROW.format("memory at most, MB", f"{memory / 1e6:.0f}", ""))
    for name, seconds in timed.items():
        median, most = np.percentile(seconds, (50, 99)) * 1e6
        lines.append(_ROW.format(name, f"{median:.0f}", f"{most:.0f}"))
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table(batch=24))
