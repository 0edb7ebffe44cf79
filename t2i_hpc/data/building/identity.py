"""What the bytes of a shard follow from: settings, versions of the encoders, and its samples.

Source files count by path, size and time of their last change, so nothing is read for it. A
shard whose identity is the same as before need not be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import features

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_json
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.manifest import FORMAT
from t2i_hpc.data.sources import SourceSample

_BUILD = 2  # raise it when the same samples and settings come to give other bytes
_DIGITS = 32


def shard_numbers(shard: int, samples: int, config: ShardsConfig) -> range:
    """Return which samples of the source a shard holds."""
    first = shard * config.shard_samples
    return range(first, min(first + config.shard_samples, samples))


def identities(samples: Sequence[SourceSample], config: ShardsConfig) -> list[str]:
    """Return the identity of each shard, in their order.

    Raises:
        DataError: a source file is not there any more.
    """
    settings = {
        "build": [_BUILD, FORMAT],
        "image": [config.format, config.quality, config.size],
        "versions": [version("pillow"), version("simplejpeg")]
        + [features.version(name) for name in ("libjpeg_turbo", "zlib", "webp", "littlecms2")],
    }
    root, state = Path(config.images), cache(_state)
    count = -(-len(samples) // config.shard_samples)
    found = []
    for shard in range(count):
        numbers = shard_numbers(shard, len(samples), config)
        described = [_described(samples[number], root, state) for number in numbers]
        content = {**settings, "first": numbers.start, "samples": described}
        found.append(sha256_of_json(content)[:_DIGITS])
    return found


def _described(sample: SourceSample, root: Path, state: Any) -> list[Any]:
    path = sample.path.relative_to(root) if sample.path.is_relative_to(root) else sample.path
    packed = sample.packed and [sample.packed.offset, sample.packed.count]
    return [
        sample.key,
        path.as_posix(),
        list(sample.captions),
        sample.class_id,
        sample.box and list(sample.box),
        packed,
        sample.orientation,
        [sample.unfit.kind, sample.unfit.reason] if sample.unfit else state(sample.path),
    ]


def _state(path: Path) -> tuple[int, int]:
    """Return size in bytes and time of the last change in nanoseconds."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns
