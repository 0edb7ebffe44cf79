"""Layouts of data sets that shards are made of: one function each, found by name."""

from __future__ import annotations

from collections.abc import Callable

from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.sources.coco import read_coco
from t2i_hpc.data.sources.cub import read_cub
from t2i_hpc.data.sources.folder import read_folder
from t2i_hpc.data.sources.foreign import read_foreign
from t2i_hpc.data.sources.pickles import read_pickles
from t2i_hpc.data.sources.sample import SourceData, SourceSample

SOURCES: dict[str, Callable[[ShardsConfig], SourceData]] = {
    "coco": read_coco,
    "cub": read_cub,
    "folder": read_folder,
    "index": read_foreign,
    "pickles": read_pickles,
}

__all__ = ["SOURCES", "SourceData", "SourceSample"]
