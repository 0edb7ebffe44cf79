"""Layouts of data sets that shards are made of: one function each, found by name."""

from __future__ import annotations

from collections.abc import Callable

from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.cub import read_cub
from t2i_hpc.data.build.sources.flowers import read_flowers
from t2i_hpc.data.build.sources.folder import read_coco, read_folder
from t2i_hpc.data.build.sources.indexed_split import read_split
from t2i_hpc.data.build.sources.mds import read_mds
from t2i_hpc.data.build.sources.parquet_images import read_parquet
from t2i_hpc.data.build.sources.pickles import read_pickles
from t2i_hpc.data.build.sources.sample import SourceData, SourceSample
from t2i_hpc.data.build.sources.webdataset_tars import read_webdataset

SOURCES: dict[str, Callable[[ShardsConfig], SourceData]] = {
    "coco": read_coco,
    "cub": read_cub,
    "flowers": read_flowers,
    "folder": read_folder,
    "webdataset": read_webdataset,
    "mds": read_mds,
    "parquet": read_parquet,
    "pickles": read_pickles,
    "split": read_split,
}

__all__ = ["SOURCES", "SourceData", "SourceSample"]
