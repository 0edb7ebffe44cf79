#!/usr/bin/env bash
# torch-fidelity 0.4.0: precision and recall of features that lie close together are too high, and
# those of one and the same image can be 0 instead of 1.
#
# Its k-nearest-neighbor radii come from torch.cdist, which takes a matrix product beyond 25 rows:
# |a|² + |b|² − 2ab cancels where the spread is small against the common offset.
#
# Expected: the same as after subtracting the common offset (distances do not change by it).
# Seen:     2,000 + 2,000 float32 vectors of 64 numbers, mean 1000, spread 0.1:
#           1.0 and 1.0; centered, or in float64: about 0.61 and 0.62, as differences give.
# Who is hurt: whoever compares a collapsed or nearly collapsed generator: the score hides it.
# Guard: compute_mode="donot_use_mm_for_euclid_dist", or center both sides before the product.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch-fidelity==0.4.0 torch==2.14.1 \
  torchvision==0.29.1 numpy==2.4.6 scipy==1.17.1 2>/dev/null
cd "$work" && OMP_NUM_THREADS=1 "$work/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

print("torch-fidelity", version("torch-fidelity"), "torch", torch.__version__)
generator = torch.Generator().manual_seed(0)
generated, real = (
    (1000 + 0.1 * torch.randn(2000, 64, generator=generator, dtype=torch.float64)).float() for _ in range(2)
)


def scores(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    precision, recall = calculate_precision_recall_full(a, b)
    return round(float(precision), 4), round(float(recall), 4)


def by_differences(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    def distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")

    def share(x: torch.Tensor, y: torch.Tensor) -> float:
        radii = distances(y, y).kthvalue(4, dim=1).values
        return round(float((distances(x, y) <= radii).any(1).float().mean()), 4)

    return share(a, b), share(b, a)


seen = scores(generated, real)
centered = scores(generated - 1000, real - 1000)
truth = by_differences(generated, real)
print("precision and recall, as they are:     ", *seen)
print("the same vectors after subtracting 1000:", *centered)
print("by differences, without a product:      ", *truth)
assert max(abs(a - b) for a, b in zip(centered, truth)) < 0.01, "centered differs from the truth"
assert min(abs(a - b) for a, b in zip(seen, truth)) > 0.3, "the common offset no longer matters"
print("behaviour as described: a common offset lifts precision and recall to 1")
PYTHON
