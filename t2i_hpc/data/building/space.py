"""Will it fit on the disk? Asked before the work, since the answer after hours is of no use."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.building.conversion import Rejected, convert, is_verbatim
from t2i_hpc.data.sources import SourceSample

_TRIED = 8  # images
_RESERVE = 1.1
_AROUND = 2048  # bytes: two headers, two paddings, the description without captions, the index


def check_space(folder: Path, samples: Sequence[SourceSample], config: ShardsConfig) -> None:
    """Refuse to begin what will not fit.

    Args:
        folder: an existing folder on the disk to write to.
        samples: those that are still to be stored.
        config: how they are stored.

    Raises:
        DataError: an estimate with a tenth in reserve is larger than the free space.
    """
    needed = int(_RESERVE * _estimate(samples, config))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{len(samples):,} images need about {needed:,} bytes, but the disk of {folder} has "
            f"{free:,} free: make room or name another output="
        )


def _estimate(samples: Sequence[SourceSample], config: ShardsConfig) -> int:
    samples = [sample for sample in samples if sample.unfit is None]
    around = sum(_AROUND + sum(map(len, sample.captions)) for sample in samples)
    kept = [sample for sample in samples if is_verbatim(config) and sample.box is None]
    converted = [sample for sample in samples if not is_verbatim(config) or sample.box]
    return around + sum(sample.size for sample in kept) + _estimate_converted(converted, config)


def _estimate_converted(samples: Sequence[SourceSample], config: ShardsConfig) -> int:
    """Convert a few images that are evenly spread, and reckon with their mean."""
    tried = min(_TRIED, len(samples))
    sizes = []
    for place in range(tried):
        try:
            sizes.append(len(convert(samples[place * len(samples) // tried], config).content))
        except Rejected:
            continue
    return sum(sizes) * len(samples) // max(1, len(sizes))
