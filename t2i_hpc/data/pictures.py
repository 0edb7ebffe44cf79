"""Pictures for people: where they go and what they are called."""

from __future__ import annotations

import re
from pathlib import Path

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import write_bytes
from t2i_hpc.data.images import Pixels, encode
from t2i_hpc.data.sources.sample import IMAGE_SUFFIXES

_LONGEST_NAME = 100  # letters


def picture_name(key: str) -> str:
    """Return a plain file name for the picture of a sample."""
    path = Path(re.sub(r"[^\w.-]+", "_", key))
    name = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    return f"{name[:_LONGEST_NAME]}.png"


def new_png(output: str) -> Path:
    """Return where a picture goes; nobody's picture is written over.

    Raises:
        ConfigurationError: it is no .png, or there already.
    """
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise ConfigurationError(f"output={output}: pictures are written as .png")
    if path.exists():
        raise ConfigurationError(f"{output} is there already: name another output=")
    return path


def write_png(path: Path, image: Pixels) -> None:
    """Write a picture, uint8 (height, width, 3).

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        write_bytes(path, encode(image, "png", 0))
    except OSError as error:
        raise ConfigurationError(f"cannot write output={path}: {error.strerror}") from error
