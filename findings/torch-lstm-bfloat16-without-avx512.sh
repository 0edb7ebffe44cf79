#!/usr/bin/env bash
# torch 2.14.1: an LSTM over packed captions fails in bfloat16 only when all are of one length.
#
# Under autocast in bfloat16 on a CPU, torch takes oneDNN's LSTM wherever it can: for plain batches,
# and for packed ones whose sequences are all of one length. It does not ask whether oneDNN has that
# LSTM in bfloat16, which it has with AVX-512 alone; convolutions and products ask. Packed sequences
# of several lengths go another way. ONEDNN_MAX_CPU_ISA shows it on any CPU.
#
# Expected: float32 or torch's own kernel, as for convolutions.
# Seen:     lengths 5, 4: encoded. Lengths 5, 5: RuntimeError, could not create a primitive descriptor
#           for the LSTM forward propagation primitive.
# Who is hurt: text encoders trained in bfloat16 on laptops: a run ends at the first batch whose
#           captions happen to have as many words each, which the last, small batch often has.
# Guard: turn autocast off around the LSTM where torch.ops.mkldnn._is_mkldnn_bf16_supported() is false.
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.4.6 2>/dev/null
export OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2
cd "$work" && venv/bin/python - 2> errors.txt <<'PYTHON' || { cat errors.txt; exit 1; }
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

print("torch", torch.__version__)
encoder = nn.LSTM(16, 8, batch_first=True)
captions = torch.randn(2, 5, 16)


def outcome(lengths: list[int]) -> str:
    """Return what becomes of two captions of these lengths."""
    packed = pack_padded_sequence(captions, torch.tensor(lengths), batch_first=True)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            encoder(packed)
    except RuntimeError as error:
        return str(error)
    return "encoded"


for lengths in ([5, 4], [5, 5]):
    print(f"captions of {lengths} words: {outcome(lengths)[:75]}")
with torch.autocast("cpu", torch.bfloat16):
    product = torch.nn.functional.conv2d(torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3))
print(f"a convolution: {product.dtype}")
assert outcome([5, 4]) == "encoded"
assert "primitive descriptor for the LSTM" in outcome([5, 5])
assert product.dtype == torch.bfloat16
print("behaviour as described: one length fails, two do not")
PYTHON
