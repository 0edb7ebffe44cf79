"""Checkpoints of the reference implementations: from their key names to ours and back.

The published weights are state dicts of the authors' classes. What is kept here, as data, is
which of their names belongs to which of ours, in their order; widths are read off the shapes.
"""

from t2i_hpc.convert.networks import ConversionError
from t2i_hpc.convert.reference import export_reference, import_reference

__all__ = ["ConversionError", "export_reference", "import_reference"]
