"""Web servers for tests that fail as real ones do."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class FileServer:
    """Serves a folder on a port of its own.

    Attributes:
        fault: called with each request's handler and path; returns whether it answered itself.
        ranges: whether byte ranges are understood.
        asked: number of GET requests by path.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.ranges = folder, True
        self.fault: Callable[[Handler, str], bool] = lambda handler, path: False
        self.asked: Counter[str] = Counter()
        self._server = _Server(("127.0.0.1", port), partial(Handler, self))
        self.port = self._server.server_port
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        """Address of the folder."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()


class MortalServer:
    """A server in a process of its own, which can be killed and comes back at its address."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, 0
        self.start()

    @property
    def url(self) -> str:
        """Address of the folder."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Begin to listen, on the same port as before."""
        words = [sys.executable, __file__, str(self._folder), str(self._port)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """End the server and its connections without a word."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128  # of five, those that come at once try again after seconds

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that leave are what tests are about."""


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD, one request a connection."""

    def __init__(self, owner: FileServer, *arguments: object) -> None:
        self.owner = owner
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        self.owner.asked[path] += 1
        if not self.owner.fault(self, path):
            self._answer(with_body=True)

    def content(self) -> tuple[int, bytes] | None:
        """Return status and bytes of what is asked for, None if it is not there."""
        path = self.owner.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            return None
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked or not self.owner.ranges:
            return 200, path.read_bytes()
        with path.open("rb") as stream:
            stream.seek(int(asked[1]))
            return 206, stream.read(int(asked[2]) + 1 - int(asked[1]))

    def send(self, status: int, content: bytes, length: int | None = None) -> None:
        """Answer; `length` is what is promised, if not what is sent."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _answer(self, *, with_body: bool) -> None:
        found = self.content()
        if found is None:
            self.send(404, b"")
        else:
            self.send(*found)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """Serve a folder while the block runs."""
    server = FileServer(folder)
    try:
        yield server
    finally:
        server.stop()


def hang(handler: Handler) -> bool:
    """Never answer."""
    time.sleep(600)
    return True


def cut(handler: Handler, after: int = 100) -> bool:
    """Send the beginning of what is asked for and close the connection."""
    status, content = handler.content() or (404, b"")
    handler.send(status, content[:after], len(content))
    return True


def flip_a_bit(handler: Handler, at: int) -> bool:
    """Send a wrong byte."""
    status, content = handler.content() or (404, b"")
    wrong = bytearray(content)
    wrong[at] ^= 4
    handler.send(status, bytes(wrong))
    return True


def fail(handler: Handler, status: int = 500) -> bool:
    """Answer with an error."""
    handler.send(status, b"")
    return True


def first_times(count: int, suffix: str, fault: Callable[[Handler], bool]) -> Callable[..., bool]:
    """Return a fault of the first `count` requests for paths that end on `suffix`."""
    seen: Counter[str] = Counter()

    def faulty(handler: Handler, path: str) -> bool:
        if not path.endswith(suffix) or seen[suffix] >= count:
            return False
        seen[suffix] += 1
        return fault(handler)

    return faulty


if __name__ == "__main__":
    sys.stdout.write(f"{FileServer(Path(sys.argv[1]), int(sys.argv[2])).port}\n")
    sys.stdout.flush()
    time.sleep(3600)
