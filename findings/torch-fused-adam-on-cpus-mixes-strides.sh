#!/usr/bin/env bash
# torch 2.14.1: Adam(fused=True) on CPUs pairs weights with the wrong gradients where strides differ.
#
# A weight that lies channels last gets a gradient in the ordinary layout, as from an all-reduce
# into a flat bucket or a checkpoint. Plain Adam goes by index. On GPUs the fused one refuses the
# pair ("must have same dtype, device, and layout"); on CPUs it walks both memories side by side.
#
# Expected: three steps equal plain Adam's to rounding, or an error as on GPUs.
# Seen:     weights off by several times the learning rate, without a word.
# Who is hurt: whoever trains convolutions channels last on CPUs with gradients that autograd did
#           not make, e.g. a view of a bucket: losses fall a little, so nobody looks.
# Guard: give the fused optimizer gradients in the weights' own layout, or take plain Adam.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.4.6 2>/dev/null
cd "$work" && OMP_NUM_THREADS=1 venv/bin/python - <<'PYTHON'
import torch

print("torch", torch.__version__)
LR = 0.01


def trained(fused: bool, layout: torch.memory_format) -> torch.Tensor:
    """Return a weight after three steps with given gradients, which lie contiguously."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=layout))
    adam = torch.optim.Adam([weight], lr=LR, fused=fused)
    for _ in range(3):
        weight.grad = torch.randn(8, 4, 3, 3)
        adam.step()
    return weight.detach().contiguous()


off = {}
for layout in (torch.contiguous_format, torch.channels_last):
    off[layout] = (trained(True, layout) - trained(False, layout)).abs().max().item()
    print(f"{layout}: fused Adam is {off[layout]:.2g} off plain Adam after 3 steps of {LR}")
assert off[torch.contiguous_format] < 1e-6, off
assert off[torch.channels_last] > LR, off
print("behaviour as described: gradients of another layout move the wrong weights, silently")
PYTHON
