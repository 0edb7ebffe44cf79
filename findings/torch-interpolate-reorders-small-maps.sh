#!/usr/bin/env bash
# torch 2.14.1: on CPUs F.interpolate copies plain maps three times where the result is small.
#
# One kernel is for channels-last maps. It is also taken for plain ones whenever height and width of
# the *result* sum to 128 or less, a rule made for pictures of three channels, at any number of
# channels: the map is reordered, an empty result is, and the result is reordered back.
#
# Expected: a result of 64 x 64 costs a little less than one of 66 x 66.
# Seen:     three copies of maps at 64 x 64, none at 66 x 66; with 512 channels 5 to 20 times the
#           time of the same values by expand and reshape. nearest, nearest-exact and bilinear.
# Who is hurt: generators and decoders on CPUs, whose deep layers are small and wide.
# Guard: enlarge plain maps by expand and reshape there, or keep maps channels last.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.4.6 2>/dev/null
export OMP_NUM_THREADS=1
cd "$work" && venv/bin/python - 2> errors.txt <<'PYTHON' || { cat errors.txt; exit 1; }
import time

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

print("torch", torch.__version__)


def copies(channels: int, side: int, mode: str) -> int:
    """Return how many tensors are copied while maps are enlarged twice."""
    maps = torch.randn(2, channels, side, side)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        F.interpolate(maps, scale_factor=2, mode=mode)
    return sum(event.name == "aten::copy_" for event in recorded.events())


def repeated(maps: torch.Tensor) -> torch.Tensor:
    """Return the same values, by one copy."""
    batch, channels, height, width = maps.shape
    wide = maps[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
    return wide.reshape(batch, channels, 2 * height, 2 * width)


def least(function, maps: torch.Tensor) -> float:
    """Return the least of five times in milliseconds; printed, not judged."""
    times = []
    for _ in range(5):
        start = time.process_time()
        function(maps)
        times.append(1e3 * (time.process_time() - start))
    return min(times)


for mode in ("nearest", "nearest-exact", "bilinear"):
    small, large = copies(64, 32, mode), copies(64, 33, mode)
    print(f"{mode}: {small} copies for a result of 64 x 64, {large} for one of 66 x 66")
    assert (small, large) == (3, 0), (small, large)
maps = torch.randn(4, 512, 32, 32)
assert torch.equal(F.interpolate(maps, scale_factor=2), repeated(maps))
theirs, ours = least(lambda m: F.interpolate(m, scale_factor=2), maps), least(repeated, maps)
print(f"(4, 512, 32, 32) enlarged twice: {theirs:.0f} ms, by expand and reshape {ours:.0f} ms")
print("behaviour as described: small results are made by way of the other layout")
PYTHON
