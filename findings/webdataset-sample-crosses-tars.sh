#!/usr/bin/env bash
# webdataset 1.0.2: after a damaged tar, an image is handed out with the caption of the next tar.
#
# Tar A is cut off inside the caption of its last sample; tar B begins with a sample of the same
# key (keys that begin anew in every tar are usual). The documented handler for damaged tars,
# wds.ignore_and_continue, sends no end-of-tar marker, so the open sample of A takes the caption of
# B's first sample, and B's own image is left out as a duplicate.
#
# Expected: sample 000009 of A is left out, or comes without a caption; B's sample is whole.
# Seen:     A's red image with "a blue picture", __url__ of A; B's blue image never appears.
# Who is hurt: whoever trains on pairs of image and text from tars that a killed job left.
# Guard: group the members of each tar by itself, and drop the open sample of one that breaks off.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet webdataset==1.0.2 numpy==2.2.6 2>/dev/null
cd "$work" && "$work/venv/bin/python" - <<'PYTHON'
import io
import tarfile

import webdataset as wds

print("webdataset", wds.__version__)


def members(color: str, keys: list[str]) -> list[tuple[str, bytes]]:
    return [
        member
        for key in keys
        for member in ((f"{key}.jpg", color.encode() * 300), (f"{key}.txt", f"a {color} picture".encode()))
    ]


def write(name: str, parts: list[tuple[str, bytes]]) -> None:
    with tarfile.open(name, "w") as tar:
        for path, content in parts:
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


write("A.tar", members("red", ["000008", "000009"]))
write("B.tar", members("blue", ["000009", "000010"]))
with tarfile.open("A.tar") as tar:
    start = tar.getmember("000009.txt").offset_data
with open("A.tar", "r+b") as stream:  # the job that wrote A was killed inside of the last caption
    stream.truncate(start + 3)

reader = wds.WebDataset(["A.tar", "B.tar"], shardshuffle=False, handler=wds.ignore_and_continue)
seen = [
    (sample["__key__"], sample["__url__"], bytes(sample["jpg"][:4]).decode()[:3], sample.get("txt", b"").decode())
    for sample in reader
]
for row in seen:
    print(row)
mixed = [row for row in seen if row[2] == "red" and "blue" in row[3]]
assert mixed == [("000009", "A.tar", "red", "a blue picture")], mixed
assert sum(key == "000009" for key, *_ in seen) == 1, "B's own sample appears after all"
print("behaviour as described: an image of A goes out with a caption of B")
PYTHON
