#!/usr/bin/env bash
# torch 2.14.1: batch norm of channels-last maps on CPUs is hundreds of times less exact.
#
# The same values, 4 maps of 256 × 256 for each of 64 channels, in another memory layout.
#
# Expected: both layouts agree with float64 to a few float32 roundings.
# Seen:     5.2e-7 in the ordinary layout, 1.8e-4 channels last.
# Who is hurt: whoever compares a training on CPUs with a reference, or one world with another:
#           the difference looks like a defect of his own.
# Guard: keep the maps before a batch norm in the ordinary layout on CPUs.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.4.6 2>/dev/null
cd "$work" && OMP_NUM_THREADS=1 venv/bin/python - <<'PYTHON'
import torch
import torch.nn.functional as F

print("torch", torch.__version__)
torch.manual_seed(0)
maps = torch.randn(4, 64, 256, 256) * 2 + 1
exact = F.batch_norm(maps.double(), None, None, training=True)
off = {}
for layout in (torch.contiguous_format, torch.channels_last):
    found = F.batch_norm(maps.contiguous(memory_format=layout), None, None, training=True)
    off[layout] = (found.double() - exact).abs().max().item()
    print(f"{layout}: {off[layout]:.2g} off float64")
assert off[torch.contiguous_format] < 2e-6, off
assert off[torch.channels_last] > 10 * off[torch.contiguous_format], off
print("behaviour as described: the layout of a map decides how exact its batch norm is")
PYTHON
