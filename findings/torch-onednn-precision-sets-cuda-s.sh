#!/usr/bin/env bash
# torch 2.14.1: torch.backends.mkldnn.fp32_precision, set for CPUs, changes CUDA's precision too.
#
# The settings are a tree: torch.backends.fp32_precision is the root, mkldnn and cuda.matmul are
# below it. Setting the leaf mkldnn sets the root, from which cuda.matmul and cudnn inherit.
#
# Expected: cuda.matmul and the root stay as they were ("none").
# Seen:     all of them say "tf32", so later matrix products on a GPU lose 13 bits.
# Who is hurt: whoever speeds up scoring on CPUs in a process that also computes on a GPU, and
#           whoever restores the setting: the root keeps the value.
# Guard: set mkldnn.matmul.fp32_precision and mkldnn.conv.fp32_precision, which stay below.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.4.6 2>/dev/null
cd "$work" && venv/bin/python - <<'PYTHON'
import torch

print("torch", torch.__version__)
backends = torch.backends


def shown() -> dict[str, str]:
    return {
        "root": backends.fp32_precision,
        "mkldnn": backends.mkldnn.fp32_precision,
        "cuda.matmul": backends.cuda.matmul.fp32_precision,
    }


before = shown()
backends.mkldnn.matmul.fp32_precision = "tf32"  # one below: stays where it is
leaf = shown()
backends.mkldnn.fp32_precision = "tf32"
after = shown()
print("before:", before, "\nmkldnn.matmul set:", leaf, "\nmkldnn set:", after)
assert leaf == before, leaf
assert before["cuda.matmul"] != "tf32", before
assert after["root"] == after["cuda.matmul"] == "tf32", after
print("behaviour as described: a setting for CPUs is a setting for GPUs")
PYTHON
