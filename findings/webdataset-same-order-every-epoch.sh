#!/usr/bin/env bash
# webdataset 1.0.2: shardshuffle=N visits the shards in the same order in every epoch.
#
# Expected: iterating again shuffles again, as torch's DataLoader(shuffle=True) does.
# Seen:     two passes of one WebDataset(shardshuffle=100) give the same order of 20 shards, and so
#           the same samples share a shuffle buffer in every epoch; only detshuffle=True differs.
# Who is hurt: trainings of many epochs over sorted shards: batches mix the same neighbours for ever.
# Guard: derive the order from (seed, epoch), or give detshuffle=True and check it.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet webdataset==1.0.2 numpy==2.2.6 2>/dev/null
cd "$work" && "$work/venv/bin/python" - <<'PYTHON'
import io
import tarfile

import webdataset as wds

print("webdataset", wds.__version__)
urls = [f"{number:02}.tar" for number in range(20)]
for url in urls:
    with tarfile.open(url, "w") as tar:
        info = tarfile.TarInfo(f"{url[:2]}.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(url[:2].encode()))


def passes(**settings: object) -> list[list[str]]:
    data = wds.WebDataset(urls, shardshuffle=100, **settings)
    return [[sample["__key__"] for sample in data] for _ in range(3)]


plain, deterministic = passes(), passes(detshuffle=True)
print("shardshuffle=100, three passes:", *(" ".join(order[:8]) for order in plain), sep="\n  ")
print("with detshuffle=True:", *(" ".join(order[:8]) for order in deterministic), sep="\n  ")
assert plain[0] != sorted(plain[0]), "it does not shuffle at all"
assert plain[0] == plain[1] == plain[2], "epochs differ now"
assert deterministic[0] != deterministic[1], "detshuffle repeats, too"
print("behaviour as described: every epoch has the same order of shards")
PYTHON
