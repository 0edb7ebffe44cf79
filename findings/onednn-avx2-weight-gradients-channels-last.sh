#!/usr/bin/env bash
# torch 2.14.1: on CPUs with AVX2 alone, channels-last makes gradients by weights slower.
#
# The usual advice is channels-last for convolutions, on CPUs too. With AVX2 oneDNN has kernels made
# for it (brg_conv) for two of a step's three convolutions, forward and the gradient by inputs. For
# the gradient by weights it takes the kernel of its own blocked layout (jit:avx2) and has it read
# channels-last maps: no reorder, but two to five times the time. Many laptops and servers have AVX2
# alone; ONEDNN_MAX_CPU_ISA shows it on others.
#
# Expected: channels-last is at least as quick as the plain layout, as its forward pass is.
# Seen:     jit:avx2 for the gradient by weights alone, at once on channels-last maps. For
#           (4, 64, 128, 128) by 64 kernels of 3 x 3 it took 4 times as long as on blocked maps
#           (82 and 337 ms on an AMD EPYC), while the other two took less than before.
# Who is hurt: training on CPUs with `.to(memory_format=torch.channels_last)`; inference is not.
# Guard: choose the layout by torch.backends.cpu.get_cpu_capability().
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.4.6 2>/dev/null
export OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2
cat > "$work/step.py" <<'PYTHON'
"""Run the three convolutions of a step in one layout, five times."""
import sys

import torch

layout = torch.channels_last if sys.argv[1] == "last" else torch.contiguous_format
maps, kernels, gradient = (
    torch.randn(shape).to(memory_format=layout)
    for shape in ((4, 64, 128, 128), (64, 64, 3, 3), (4, 64, 128, 128))
)
for _ in range(5):
    torch.conv2d(maps, kernels, padding=1)
    for mask in ([True, False, False], [False, True, False]):
        torch.ops.aten.convolution_backward(
            gradient, maps, kernels, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
        )
PYTHON
cat > "$work/read.py" <<'PYTHON'
"""Read oneDNN's log: each pass's kernel, layout of the maps, and least time, printed alone."""
import sys

passes = {"forward_training": [], "backward_data": [], "backward_weights": []}
for line in sys.stdin:
    cells = line.rstrip("\n").split(",")
    if len(cells) > 9 and cells[3] == "exec" and cells[5] == "convolution":
        passes[cells[7]].append((float(cells[-1]), cells[6], "acdb" in cells[8]))
for name, runs in passes.items():
    least, kernel, last = min(runs)
    print(f"  {name}: {kernel}, {least:.0f} ms")
    assert last == (sys.argv[1] == "last"), "maps in another layout"
    made_for_it = kernel.startswith("brg_conv")
    assert made_for_it == (last and name != "backward_weights"), kernel
PYTHON
cd "$work"
venv/bin/python -c 'import torch; print("torch", torch.__version__)'
for layout in plain last; do
  echo "$layout:"
  ONEDNN_VERBOSE=1 venv/bin/python step.py "$layout" > log.txt 2> errors.txt ||
    { cat errors.txt; exit 1; }
  python3 read.py "$layout" < log.txt
done
echo "behaviour as described: the gradient by weights has no kernel made for channels-last"
