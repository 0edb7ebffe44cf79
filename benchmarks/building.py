"""How fast tars are indexed where they lie, and whether a partition grows with the data.

    python -m benchmarks.data --index                     # 304 px JPEG with .txt and .json; 3 min
    python -m benchmarks.data --index --size 1024 --samples 400
    python -m benchmarks.data --build                     # 10⁵ to 10⁷ synthetic samples

The first compares ``shards index=`` with ``cat tars > /dev/null`` on the same tars. Cold, the tars
are dropped from the page cache before each row, so the disk is read; warm, they are in it. Rounds
go around all rows and each figure's best one counts. Where the limit lies is seen by the rates of
reading alone and of hashing alone, both in CPU time of one core. The second makes one shard as one
partition of a split of more and more samples: peak memory above that before, and CPU time a
sample, the least of three.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xxhash

from t2i_hpc.common.terminal import say
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.choose_vocabulary import make_vocabulary
from t2i_hpc.data.build.split_writer import build_index, build_partition
from t2i_hpc.data.format.manifest import MANIFEST, Manifest
from t2i_hpc.data.format.tables import ROW, sha256_of_rows
from t2i_hpc.data.images import encode

_TARS, _BLOCK = 4, 1 << 20
_ROW = "{:<44}{:>12}{:>12}{:>14}"
_SHARD = 1000
_ROUNDS = 3
_CAT, _LAST = "cat tars > /dev/null", "shards index= checksum=xxh128 workers=2"
_BUSY = 0.9


def write_tars(folder: Path, images: list[bytes], count: int) -> int:
    """Write tars as img2dataset does, `count` samples in all; return their bytes."""
    folder.mkdir()
    each = -(-count // _TARS)
    for number in range(_TARS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for place in range(each):
                key = f"{number:05d}{place:04d}"
                caption = f"a photograph of number {place % 97}, as somebody described it"
                said: dict[str, object] = {
                    "caption": caption,
                    "url": f"https://images.example/{key}.jpg",
                    "key": key,
                    "status": "success",
                    "width": 304,
                    "height": 304,
                    "exif": "{}",
                }
                content = images[place % len(images)]
                for extension, text in (
                    ("jpg", content),
                    ("json", json.dumps(said, indent=4).encode()),
                    ("txt", caption.encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(text)
                    tar.addfile(member, io.BytesIO(text))
    return sum(path.stat().st_size for path in folder.iterdir())


def compare_index(images: list[bytes], count: int, rounds: int) -> None:
    """Print how fast tars are indexed, beside ``cat`` and what the disk and one core can do."""
    with TemporaryDirectory() as place:
        tars, index = Path(place) / "tars", Path(place) / "index"
        size = write_tars(tars, images, count)
        say(f"{count:,} samples in {_TARS} tars, {size / 1e6:,.0f} MB\n")
        rows = _rows(tars, index)
        for state, settle in (("cold", _forget), ("warm", _remember)):

            def ready(settle: Callable[[Path], None] = settle) -> None:
                shutil.rmtree(index, ignore_errors=True)
                settle(tars)

            _print_rows(state, _best_of(rows, ready, rounds), size, count)
        index_bytes = Manifest.load(index / "train").bytes_of_index
        say(f"the index takes {index_bytes / size:.2%} of the tars; one core, in CPU time:")
        for name, act in _ALONE.items():
            say(f"  {name:<20}{size / _one_core(act, tars) / 1e6:>8,.0f} MB/s")


def _rows(tars: Path, index: Path) -> dict[str, Callable[[], object]]:
    rows: dict[str, Callable[[], object]] = {_CAT: partial(_cat, tars)}
    for checksum in ("sha256", "xxh128"):
        for workers in (1, 2):
            config = ShardsConfig(
                source="webdataset",
                images=str(tars),
                index=str(index),
                workers=workers,
                checksum=checksum,
            )
            name = f"shards index= checksum={checksum} workers={workers}"
            rows[name] = partial(build_index, config)
    return rows


def _best_of(
    rows: dict[str, Callable[[], object]], ready: Callable[[], None], rounds: int
) -> dict[str, tuple[float, float]]:
    """Return the fewest wall seconds and CPU seconds of each row."""
    turns = dict[str, list[tuple[float, float]]]()
    for _ in range(rounds):
        for name, act in rows.items():
            ready()
            turns.setdefault(name, []).append(_seconds(act))
    return {name: (min(w for w, _ in one), min(c for _, c in one)) for name, one in turns.items()}


def _print_rows(state: str, best: dict[str, tuple[float, float]], size: int, count: int) -> None:
    say(_ROW.format(f"{state} tars", "MB/s", "of cat", "CPU µs/sample"))
    for name, (wall, processor) in best.items():
        rate, part = f"{size / wall / 1e6:,.0f}", f"{best[_CAT][0] / wall:.2f}"
        say(_ROW.format(name, rate, part, f"{processor / count * 1e6:.0f}"))
    wall, processor = best[_LAST]
    busy = processor / wall / 2
    limit = "they are the limit" if busy > _BUSY else "the disk is, if nothing else runs here"
    say(f"the last row keeps two cores busy for {busy:.0%} of its time: {limit}\n")


def _forget(tars: Path) -> None:
    """Drop the tars from the page cache, which takes no rights once they are on the disk."""
    for path in tars.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _remember(tars: Path) -> None:
    for path in tars.iterdir():
        _read(path, len)


def _cat(tars: Path) -> None:
    subprocess.run(f"cat {tars}/*.tar > /dev/null", shell=True, check=True)


def _seconds(act: Callable[..., object], *given: object) -> tuple[float, float]:
    """Return wall seconds, and CPU seconds of this process and its children."""
    begin, before = time.perf_counter(), sum(os.times()[:4])
    act(*given)
    return time.perf_counter() - begin, sum(os.times()[:4]) - before


def _read(path: Path, take: Callable[[bytearray], object]) -> None:
    buffer = bytearray(_BLOCK)
    with path.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            take(buffer)


_ALONE: dict[str, Callable[[Path], None]] = {
    "reading": lambda path: _read(path, len),
    "reading and SHA-256": lambda path: _read(path, hashlib.sha256().update),
    "reading and XXH128": lambda path: _read(path, xxhash.xxh3_128().update),
}


def _one_core(act: Callable[[Path], None], tars: Path) -> float:
    found = []
    for _ in range(3):
        begin = time.thread_time()
        for path in sorted(tars.iterdir()):
            act(path)
        found.append(time.thread_time() - begin)
    return min(found)


# --- memory of a partition


def compare_partitions() -> None:
    """Print peak memory and CPU time of one partition of larger and larger splits."""
    say(_ROW.format("samples in all (partition of 1,000)", "peak MB", "CPU s", "CPU µs/sample"))
    for count in (10**5, 10**6, 10**7):
        with TemporaryDirectory() as place:
            config = _enlarged(Path(place), count)
            shards = count // _SHARD
            turns = [_measured(config, shards // 2 + turn, shards) for turn in range(_ROUNDS)]
            peak, processor = (min(values) for values in zip(*turns, strict=True))
            per_sample = f"{processor / _SHARD * 1e6:.0f}"
            say(_ROW.format(f"{count:,}", f"{peak:.1f}", f"{processor:.2f}", per_sample))


def _measured(config: ShardsConfig, number: int, shards: int) -> tuple[float, float]:
    """Return peak memory in MB and CPU seconds of a partition, in a process of its own."""
    reader, writer = get_context("fork").Pipe(duplex=False)
    given = replace(config, partition=f"{number}/{shards}"), writer
    process = get_context("fork").Process(target=_partition, args=given)
    process.start()
    peak, processor = reader.recv()
    process.join()
    return peak, processor


def _enlarged(folder: Path, count: int) -> ShardsConfig:
    """Return the build of a split of `count` samples, which are the same thousand again and again.

    Tables are those of so many samples; the tars of all shards are one file.
    """
    rng = np.random.default_rng(0)
    images = [encode(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8), "jpeg", 90)]
    write_tars(folder / "tars", images, _TARS * _SHARD)
    config = ShardsConfig(source="webdataset", images=str(folder / "tars"), index=str(folder / "i"))
    build_index(replace(config, workers=1))
    split = folder / "i" / "train"
    manifest, shards = Manifest.load(split), count // _SHARD
    rows = np.array(manifest.rows(0))
    table = np.repeat(np.array(manifest.table[:1]), shards)
    table["first"] = np.arange(shards, dtype=np.uint64) * _SHARD
    table["rows_sha256"] = np.frombuffer(bytes.fromhex(sha256_of_rows(rows)), np.uint8)
    index = np.lib.format.open_memmap(split / "index.npy", "w+", ROW, (count,))
    for begin in range(0, count, _SHARD):
        index[begin : begin + _SHARD] = rows
    index.flush()
    np.save(split / "shards.npy", table)
    line = (split / "tars.jsonl").read_text().split("\n")[0]
    (split / "tars.jsonl").write_text(f"{line}\n" * shards)
    (split / MANIFEST).unlink()
    replace(
        manifest,
        sample_count=count,
        shard_count=shards,
        bytes=int(table["bytes"].sum()),
        shards_sha256=hashlib.sha256((split / "shards.npy").read_bytes()).hexdigest(),
    ).save()
    make_vocabulary(folder / "out", [folder / "tars"])
    return ShardsConfig(
        source="split", images=str(split), output=str(folder / "out"), size=16, workers=1
    )


def _partition(config: ShardsConfig, writer: Connection) -> None:
    before, begin = _peak(), time.process_time()
    build_partition(config)
    writer.send((_peak() - before, time.process_time() - begin))


def _peak() -> float:
    """Return the largest memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
