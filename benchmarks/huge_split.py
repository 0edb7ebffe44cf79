"""What a remote split of 10⁹ samples in 10⁶ shards costs until its first batch.

    python -m benchmarks.huge_split                       # half a minute
    python -m benchmarks.huge_split --shards 5000

The server is a thread on loopback that makes up tables and tars: 16 different tars of 1,000 tiny
samples (2 MB) in turn. Bytes are all that it sent by the time of the first batch of 24, those that
are fetched ahead included; the window is 4 shards.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import re
import sys
import time
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import numpy as np

from t2i_hpc.common.terminal import say
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.format.tables import ROW
from t2i_hpc.data.images import encode
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import indexed_loader

_TARS, _SAMPLES = 16, 1000  # different tars, samples of each
_TARGET = "targets are 20 MB and 3 s"


class HugeSplit:
    """The files of a split of many shards, which are made when they are asked for.

    Args:
        seed: folder of a split with the different tars; its manifest becomes the large one's.
        shards: number of them.
    """

    def __init__(self, seed: Path, shards: int) -> None:
        small = Manifest.load(seed)
        self.tars = [(seed / f"{number:06d}.tar").read_bytes() for number in range(_TARS)]
        self._rows = small.index.tobytes()
        table = np.tile(np.array(small.table), -(-shards // _TARS))[:shards]
        table["first"] = np.arange(shards, dtype=np.uint64) * _SAMPLES
        self.sent = 0
        self._index_header = _header(ROW, shards * _SAMPLES)
        np.save(seed / "shards.npy", table)
        self.shards = (seed / "shards.npy").read_bytes()
        replace(
            small,
            sample_count=shards * _SAMPLES,
            shard_count=shards,
            bytes=int(table["bytes"].sum()),
            shards_sha256=hashlib.sha256(self.shards).hexdigest(),
        ).save()
        names = ("manifest.json", "outline.bin")
        self.files = {f"/train/{name}": (seed / name).read_bytes() for name in names}
        self.files["/vocabulary.json"] = (seed.parent / "vocabulary.json").read_bytes()

    def read(self, path: str, begin: int, end: int) -> bytes:
        """Return a range of a file."""
        if path.endswith(".tar"):
            return self.tars[int(path[-10:-4]) % _TARS][begin:end]
        if path.endswith("shards.npy"):
            return self.shards[begin:end]
        if path.endswith("index.npy"):
            skipped = len(self._index_header)
            found = self._index_header[begin:end]
            begin, end = max(0, begin - skipped), max(0, end - skipped)
            first = begin // len(self._rows) * len(self._rows)
            return (
                found
                + (self._rows * (2 + (end - begin) // len(self._rows)))[begin - first : end - first]
            )
        return self.files[path][begin:end]


def _header(kind: np.dtype[np.void], rows: int) -> bytes:
    """Return the beginning of an .npy file of so many rows."""
    stream = io.BytesIO()
    content = {
        "descr": np.lib.format.dtype_to_descr(kind),
        "fortran_order": False,
        "shape": (rows,),
    }
    np.lib.format.write_array_header_1_0(stream, content)
    return stream.getvalue()


class _Handler(BaseHTTPRequestHandler):
    """Answers GET from a split that is made up."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, split: HugeSplit, *arguments: object) -> None:
        self.split = split
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "bytes=0-99999999"))
        begin, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, 1 << 30)
        content = self.split.read(self.path, begin, end)
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.split.sent += len(content)
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Of socketserver's five, those that come at once are dropped, and try again after 1 and 3 s.
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that leave."""


def build_seed(folder: Path) -> Path:
    """Build the different tars; return the folder of their split."""
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(_TARS * _SAMPLES):
        color = rng.integers(0, 256, (1, 1, 3)).astype(np.uint8)
        picture = encode(np.broadcast_to(color, (16, 16, 3)).copy(), "png", 0)
        (images / f"{number:06d}.png").write_bytes(picture)
        (images / f"{number:06d}.txt").write_text("a color\n")
    output = folder / "built"
    build_split(ShardsConfig(images=str(images), output=str(output), format="original"))
    return output / "train"


def main(arguments: list[str]) -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="First batch of a huge remote split.")
    parser.add_argument("--shards", type=int, default=10**6, help="of 1,000 samples each")
    given = parser.parse_args(arguments)
    logging.disable()
    with TemporaryDirectory() as made:
        folder = Path(made)
        split = HugeSplit(build_seed(folder), given.shards)
        server = _Server(("127.0.0.1", 0), partial(_Handler, split))
        Thread(target=server.serve_forever, daemon=True).start()
        for reads, workers in (("shards", 1), ("ranges", 0)):
            split.sent, start = 0, time.perf_counter()
            config = DataConfig(
                path=f"http://127.0.0.1:{server.server_port}",
                cache=str(folder / f"cache-{reads}"),
                shuffle_window=4,
                workers=workers,
                remote_reads=reads,
            )
            opened = Split.open(config, "train")
            batches = indexed_loader(config, opened, 16, 0, RankSlice(24)).batches(0)
            next(batches)
            seconds, sent = time.perf_counter() - start, split.sent / 1e6
            say(f"remote_reads={reads}: first batch after {seconds:.2f} s and {sent:.1f} MB")
            batches.close()  # type: ignore[attr-defined]
        say(f"{given.shards:,} shards, {given.shards * _SAMPLES:,} samples; {_TARGET}")


if __name__ == "__main__":
    main(sys.argv[1:])
