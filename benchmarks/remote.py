"""How long training waits for shards on a server that is far away.

    python -m benchmarks.remote                                  # two minutes
    python -m benchmarks.remote --steps 12 --step 0.1 --samples 400
    python -m benchmarks.remote --setup 0                        # nothing is built before a step

The server needs 50 ms to answer and sends 1 MB/s by each connection, however many there are. A step
takes half a second and 20 images of 25 kB; shuffling reaches over 4 shards of 100 images (2.5 MB).
A loader is opened and started, then `--setup` seconds pass in which a training builds its model,
and then it is asked for batches: what is waited for is all of the time in `next`. Caches are empty.
webdataset shuffles 400 samples and mosaicml's streaming (where it is installed) blocks of 400; both
only read bytes, while ours decodes, crops and makes batches as well. "ours, prefetch=0" fetches a
shard when its first sample is wanted.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import webdataset
from torch.utils.data import DataLoader

from benchmarks.data import draw
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.images import encode
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import indexed_loader

_LATENCY, _BYTES_PER_SECOND, _CHUNK = 0.05, 1e6, 32 << 10
_SHARD_SAMPLES, _WINDOW, _BATCH, _WORKERS, _SIDE = 100, 4, 20, 2, 224
_ROW = "{:<20}{:>12}{:>12}{:>14}{:>12}{:>16}\n"
_NAMES = ("loader", "opening, s", "first, s", "all waits, s", "of steps", "but the first")
Batches = Iterator[Any]


class _Handler(BaseHTTPRequestHandler):
    """A file, or a range of it, at the pace of a distant server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the client to confirm its header
    root = Path()

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.root / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1 if asked and asked[2] else len(content), len(content))
        time.sleep(_LATENCY)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - begin))
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        if self.path.startswith("/mds/"):  # its forked workers would share a connection
            self.send_header("Connection", "close")
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 00:00:00 GMT")
        self.end_headers()
        start = time.monotonic()
        for place in range(begin, end if with_body else begin, _CHUNK):
            last = min(place + _CHUNK, end)
            due = start + (last - begin) / _BYTES_PER_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
            self.wfile.write(content[place:last])

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that leave."""


def serve(folder: Path) -> None:
    """Serve a folder and print the port."""
    _Handler.root = folder
    server = _Server(("127.0.0.1", 0), _Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


@dataclass(frozen=True)
class Work:
    """Where the data is, and an empty folder for each loader."""

    url: str
    folder: Path
    shards: int


def write_data(folder: Path, samples: int) -> int:
    """Write the samples as our shards and, where it is installed, as mosaicml's; return shards."""
    rng = np.random.default_rng(0)
    contents = [encode(draw(rng, _SIDE), "jpeg", 95) for _ in range(20)]
    images = folder / "images"
    images.mkdir()
    for number in range(samples):
        (images / f"{number:06d}.jpg").write_bytes(contents[number % len(contents)])
        (images / f"{number:06d}.txt").write_text("a thing\n")
    output = folder / "served"
    build_split(
        ShardsConfig(
            images=str(images),
            output=str(output),
            format="original",
            shard_samples=_SHARD_SAMPLES,
        )
    )
    shards = sorted((output / "train").glob("*.tar"))
    if find_spec("streaming"):
        columns, size = {"jpg": "bytes", "txt": "str"}, shards[0].stat().st_size
        with _streaming().MDSWriter(
            out=str(output / "mds" / "train"), columns=columns, size_limit=size
        ) as writer:
            for number in range(samples):
                writer.write({"jpg": contents[number % len(contents)], "txt": "a thing"})
    return len(shards)


def ours(work: Work, prefetch: int) -> Batches:
    """Read through our loader."""
    config = DataConfig(
        path=work.url,
        cache=str(work.folder / f"ours-{prefetch}"),
        shuffle_window=_WINDOW,
        workers=_WORKERS,
        prefetch=prefetch,
    )
    split = Split.open(config, "train")
    loader = indexed_loader(config, split, 64, 0, RankSlice(_BATCH))
    loader.start(0)
    return loader.batches(0)


def _streaming() -> Any:
    return importlib.import_module("streaming")  # no dependency of ours


def plain_webdataset(work: Work) -> Batches:
    """Read by webdataset's own pipeline, as its documentation has it."""
    urls = [f"{work.url}/train/{number:06d}.tar" for number in range(work.shards)]
    samples = webdataset.WebDataset(urls, shardshuffle=work.shards, nodesplitter=None)
    samples = samples.shuffle(_WINDOW * _SHARD_SAMPLES).to_tuple("jpg", "json").batched(_BATCH)
    return iter(DataLoader(samples.repeat(), batch_size=None, num_workers=_WORKERS))


def mosaicml(work: Work) -> Batches:
    """Read by mosaicml's streaming."""
    # It has no HTTP; its boto3 takes our server for one of S3's.
    settings = {"S3_ENDPOINT_URL": work.url, "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= settings | {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    found = _streaming().StreamingDataset(
        remote="s3://mds/train",
        local=str(work.folder / "mosaicml"),
        shuffle=True,
        shuffle_block_size=_WINDOW * _SHARD_SAMPLES,
        batch_size=_BATCH,
        num_canonical_nodes=1,
    )
    return iter(DataLoader(found, batch_size=_BATCH, num_workers=_WORKERS, collate_fn=list))


@dataclass(frozen=True)
class Pace:
    """How many steps a training takes, the seconds of each, and those until the first."""

    steps: int
    seconds: float
    setup: float


def waited(make: Callable[[], Batches], pace: Pace) -> tuple[float, list[float]]:
    """Return seconds of opening, and those waited for each batch."""
    start = time.perf_counter()
    batches = make()
    opening = time.perf_counter() - start
    time.sleep(pace.setup)
    waits = []
    for _ in range(pace.steps):
        start = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - start)
        time.sleep(pace.seconds)
    if hasattr(batches, "close"):
        batches.close()
    return opening, waits


def table(work: Work, pace: Pace) -> str:
    """Return what each loader waits for."""
    rows: dict[str, Callable[[], Batches]] = {
        "ours": partial(ours, work, 1),
        "ours, prefetch=0": partial(ours, work, 0),
        "webdataset": partial(plain_webdataset, work),
    }
    if find_spec("streaming"):
        rows["mosaicml-streaming"] = partial(mosaicml, work)
    lines = [_ROW.format(*_NAMES)]
    for name, make in rows.items():
        opening, waits = waited(make, pace)
        times = (f"{seconds:.2f}" for seconds in (opening, waits[0], sum(waits)))
        shares = (f"{sum(some) / (pace.steps * pace.seconds):.1%}" for some in (waits, waits[1:]))
        lines.append(_ROW.format(name, *times, *shares))
    return "".join(lines)


def main(arguments: list[str]) -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Waiting for shards on a distant server.")
    parser.add_argument("--samples", type=int, default=3200, help="synthetic images")
    parser.add_argument("--steps", type=int, default=62, help="steps, of 20 images each")
    parser.add_argument("--step", type=float, default=0.5, help="seconds of a step")
    parser.add_argument("--setup", type=float, default=2.0, help="seconds before the first step")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        serve(given.serve)
        return
    logging.disable()
    with TemporaryDirectory() as made:
        folder = Path(made)
        shards = write_data(folder, given.samples)
        command = [sys.executable, "-m", "benchmarks.remote", "--serve", str(folder / "served")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            work = Work(f"http://127.0.0.1:{int(server.stdout.readline())}", folder, shards)
            try:
                sys.stdout.write(table(work, Pace(given.steps, given.step, given.setup)))
            finally:
                server.kill()


if __name__ == "__main__":
    main(sys.argv[1:])
