#!/usr/bin/env bash
# mosaicml-streaming 0.13.0: forked DataLoader workers fetch shards over one connection.
#
# StreamingDataset's constructor fetches index.json with a boto3 client and keeps it. DataLoader
# forks its workers, as it does on Linux up to Python 3.13, and each inherits the client together
# with its open keep-alive connection. Two workers that fetch their first shards at once read each
# other's answers. With plain-http S3, as on-premises stores often are, nothing notices:
# validate_hash is off by default.
#
# Expected: each shard in the local folder has the bytes that the server has.
# Seen:     some shards hold bytes of others; reading them raises IndexError, or yields other samples.
# Who is hurt: whoever trains from an S3 store without TLS; wrong samples stay in the local folder.
# Guard: clients made after the fork, and checksums of what was fetched.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet mosaicml-streaming==0.13.0 boto3==1.43.117 \
  torch==2.14.1 numpy==2.1.3 2>/dev/null
cd "$work" && "$work/venv/bin/python" -W ignore - 2>/dev/null <<'PYTHON'
import hashlib
import multiprocessing
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

print("mosaicml-streaming", version("mosaicml-streaming"), "· boto3", version("boto3"))
forked = multiprocessing.get_context("fork")
served = Path("served/bucket/train")
with MDSWriter(out=str(served), columns={"n": "int", "x": "bytes"}, size_limit=1 << 16) as writer:
    for n in range(400):
        writer.write({"n": n, "x": bytes([n % 251]) * 4000})


class Store(BaseHTTPRequestHandler):
    """As much of S3 as a download needs, 50 ms away."""

    protocol_version = "HTTP/1.1"

    def answer(self, with_body: bool) -> None:
        content = Path("served" + self.path.partition("?")[0]).read_bytes()
        time.sleep(0.05)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def log_message(self, *arguments: object) -> None:
        pass


def train(local: str) -> None:
    data = StreamingDataset(remote="s3://bucket/train", local=local, shuffle=True, batch_size=4)
    for _ in DataLoader(data, batch_size=4, num_workers=4, collate_fn=list, timeout=10):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
store = forked.Process(target=server.serve_forever, daemon=True)
store.start()
os.environ |= {
    "S3_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_DEFAULT_REGION": "us-east-1",
}
mixed = 0
for attempt in range(8):  # which worker reads what is a race
    local = Path(f"local-{attempt}")
    training = forked.Process(target=train, args=(str(local),))
    training.start()
    training.join(60)
    names = [path.name for path in sorted(local.glob("*.mds"))]
    wrong = [name for name in names if (local / name).read_bytes() != (served / name).read_bytes()]
    print(f"attempt {attempt}: {len(names)} shards fetched, not the server's bytes: {wrong}")
    mixed += len(wrong)
    if mixed > 1:
        break
store.terminate()
assert mixed, "every shard has the server's bytes: the behaviour has changed"
print("behaviour as described: shards hold bytes of others")
PYTHON
