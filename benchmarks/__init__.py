"""Measurements, one file a claim; the package is imported first, as training does."""

import t2i_hpc

__all__ = ["t2i_hpc"]
