"""COCO's own layout, and the files of other data sets in its form: images and one captions JSON.

The captions file decides which images are taken, in its order; files that it does not name
are left alone, so that a part of the captions can be used with the whole folder. Karpathy's
``dataset_coco.json`` names the split of each image as well.
"""

from __future__ import annotations

from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.sources.folder import read_captions_file
from t2i_hpc.data.sources.sample import SourceData, folder_at


def read_coco(config: ShardsConfig) -> SourceData:
    """Read ``captions_<split>.json`` and find its images; every image is its own class.

    Raises:
        DataError: missing or unreadable files.
    """
    folder = folder_at(config.images, "images", "COCO's folder of images, e.g. train2014")
    if not config.captions:
        raise DataError("captions= is missing: name COCO's captions_train2014.json or the like")
    return read_captions_file(folder, Path(config.captions), config, keys_have_suffixes=False)
