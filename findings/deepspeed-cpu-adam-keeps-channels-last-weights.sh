#!/usr/bin/env bash
# DeepSpeed 0.19.8: DeepSpeedCPUAdam never moves weights that lie channels last.
#
# Convolution networks are laid out by .to(memory_format=torch.channels_last). The compiled step
# works on contiguous copies of parameter, gradient and moments, and the copies are thrown away.
#
# Expected: one step of Adam moves every weight with a gradient by the learning rate, 0.1.
# Seen:     0.1 for the contiguous layout, exactly 0 for channels last, without a word.
# Who is hurt: whoever offloads or trains on CPUs: biases and norms learn, so losses move a little.
# Guard: refuse the pair, or lay weights out contiguously for this optimizer.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet deepspeed==0.19.8 torch==2.14.1 numpy==2.4.6 ninja \
  setuptools==80.9.0 wheel 2>/dev/null
# DeepSpeed compiles a small CPU part at its first start: its cache stays in the folder, too.
export TORCH_EXTENSIONS_DIR="$work/extensions" OMP_NUM_THREADS=1 PATH="$work/venv/bin:$PATH"
cd "$work" && python - 2> errors.txt <<'PYTHON' || { cat errors.txt; exit 1; }
import os

os.environ["DS_ACCELERATOR"] = "cpu"
import torch
import deepspeed
from deepspeed.ops.adam import DeepSpeedCPUAdam

print("deepspeed", deepspeed.__version__, "torch", torch.__version__)


def moved(layout: torch.memory_format) -> float:
    """Return how far one step moves a convolution's weights."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 8, 3).to(memory_format=layout)
    before = network.weight.detach().clone()
    adam = DeepSpeedCPUAdam(network.parameters(), lr=0.1, adamw_mode=False)
    network(torch.ones(2, 3, 8, 8)).square().sum().backward()
    adam.step()
    return (network.weight - before).abs().max().item()


seen = {str(layout): moved(layout) for layout in (torch.contiguous_format, torch.channels_last)}
for layout, distance in seen.items():
    print(f"{layout}: the step moves weights by at most {distance:g}")
assert abs(seen["torch.contiguous_format"] - 0.1) < 1e-3, seen
assert seen["torch.channels_last"] == 0.0, seen
print("behaviour as described: weights that lie channels last never move, and nothing says so")
PYTHON
