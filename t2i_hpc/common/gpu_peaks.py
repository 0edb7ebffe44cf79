"""Peak arithmetic of GPUs, of which MFU is a share.

Dense products (no 2:4 sparsity), boost clocks, from the makers' data sheets:

- H100, H200, GH200, B200, A100, V100, T4, L4, L40S, A40: NVIDIA's product data sheets of these
  names; those of the H and B series give tensor figures with sparsity, which are halved here.
- RTX A6000, RTX 3090: NVIDIA Ampere GA102 whitepaper, tables of the appendix.
- RTX 4090, RTX 6000 Ada, L40: NVIDIA Ada GPU architecture whitepaper and their data sheets.
"""

from __future__ import annotations

import re

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
# TFLOP/s by precision; None where the card has no such tensor cores. The first name that is found
# as a whole word in torch's name of the card counts.
PEAKS: dict[str, tuple[float | None, ...]] = {
    "B200": (75.0, 1100.0, 2250.0, 2250.0),
    "GH200": (67.0, 494.7, 989.4, 989.4),
    "H200": (67.0, 494.7, 989.4, 989.4),
    "H100 NVL": (60.0, 417.5, 835.5, 835.5),
    "H100 PCIe": (51.0, 378.0, 756.0, 756.0),
    "H100": (67.0, 494.7, 989.4, 989.4),  # SXM: torch says "NVIDIA H100 80GB HBM3"
    "A100": (19.5, 156.0, 312.0, 312.0),
    "A40": (37.4, 74.8, 149.7, 149.7),
    "A6000": (38.7, 77.4, 154.8, 154.8),
    "L40S": (91.6, 183.0, 362.0, 362.0),
    "L40": (90.5, 90.5, 181.0, 181.0),
    "L4": (30.3, 60.0, 121.0, 121.0),
    "RTX 6000 Ada": (91.1, 182.1, 364.2, 364.2),
    "RTX 4090": (82.6, 82.6, 165.2, 165.2),
    "RTX 3090": (35.6, 35.6, 71.0, 71.0),
    "V100-PCIE": (14.0, None, None, 112.0),
    "V100": (15.7, None, None, 125.0),
    "T4": (8.1, None, None, 65.0),
}


def peak_flops(name: str, precision: str) -> float | None:
    """Return a card's peak in FLOP/s; None where the card is unknown or has no such products.

    Args:
        name: as torch gives it, e.g. ``NVIDIA A100-SXM4-80GB``.
        precision: of ``PRECISIONS``; of another there is none.
    """
    if precision not in PRECISIONS:
        return None
    for part, peaks in PEAKS.items():
        if re.search(rf"\b{re.escape(part)}\b", name):
            peak = peaks[PRECISIONS.index(precision)]
            return None if peak is None else 1e12 * peak
    return None
