"""Settings of a build that its source or its format would ignore."""

from __future__ import annotations

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.conversion import LOSSLESS
from t2i_hpc.data.build.sample_filter import SampleFilter

_LOSSY = ("jpeg", "webp")
_SCALED = (*_LOSSY, LOSSLESS)


def check_settings(config: ShardsConfig) -> None:
    """Refuse settings that the source or the format would ignore.

    Raises:
        DataError: names the first of them.
    """
    if config.filter:
        SampleFilter(config.filter)  # is one
    default = ShardsConfig()
    for key, formats in (("size", _SCALED), ("quality", _LOSSY)):
        value = getattr(config, key)
        if config.format not in formats and value != getattr(default, key):
            raise DataError(
                f"{key}={value} has no meaning with format={config.format}: leave it out, or take "
                f"{' or '.join(f'format={form}' for form in formats)}"
            )
    tars, plain = ("webdataset",), ("coco", "folder", "mds", "webdataset")
    tables = ("parquet",)
    for key in ("urls", "check_images", "checksum"):
        if getattr(config, key) != getattr(default, key):
            raise DataError(f"{key}= belongs to index=, which leaves tars where they lie")
    for key, value, sources in (
        ("image_member", config.image_member, tars),
        ("caption_member", config.caption_member, tars),
        ("image_key", config.image_key, tables),
        ("caption_key", config.caption_key, (*plain, *tables)),
        ("test_fraction", config.test_fraction, plain),
        ("filter", config.filter, (*plain, *tables, "cub", "flowers", "pickles")),
    ):
        if value and config.source not in sources:
            raise DataError(
                f"{key}={value} does not belong to source={config.source}, but to "
                f"{' and '.join(f'source={source}' for source in sources)}: leave it out"
            )
