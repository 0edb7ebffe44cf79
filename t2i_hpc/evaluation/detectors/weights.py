"""Weights that cannot be shipped: where they are, how they are fetched and checked.

Compute nodes have no internet, so nothing is ever downloaded on the way: `t2i_hpc.fetch` does
it once, on a machine that has internet, and a missing file is refused with that command.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlparse

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import atomic_writer, sha256_of_file
from t2i_hpc.common.terminal import progress

_TIMEOUT_SECONDS = 30.0
_BLOCK_BYTES = 1 << 20
NETWORKS = {
    "inception": "Inception-v3",
    "inception_literature": "torchvision's Inception-v3",
}


@dataclass(frozen=True)
class WeightsFile:
    """A file on the internet whose name ends with the first 8 hex digits of its SHA-256."""

    url: str

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(urlparse(self.url).path).name

    @property
    def sha256_prefix(self) -> str:
        """The digits that the SHA-256 begins with, from the name (the rule of torch.hub)."""
        found = re.search(r"-([0-9a-f]{8,})\.", self.name)
        if found is None:
            raise ValueError(f"{self.name} carries no hash")
        return found.group(1)

    def is_in(self, folder: Path) -> bool:
        """Return whether the folder holds the file, whole."""
        path = folder / self.name
        return path.is_file() and sha256_of_file(path).startswith(self.sha256_prefix)


def inception_file() -> WeightsFile:
    """Return torch-fidelity's Inception-v3 weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return WeightsFile(URL_INCEPTION_V3)


def literature_file() -> WeightsFile:
    """Return torchvision's Inception-v3 weights for ImageNet."""
    from torchvision.models import Inception_V3_Weights

    return WeightsFile(Inception_V3_Weights.IMAGENET1K_V1.url)


def published_file(what: str) -> WeightsFile:
    """Return the file that ``t2i_hpc.fetch what=…`` gets, a key of `NETWORKS`."""
    return inception_file() if what == "inception" else literature_file()


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/t2i_hpc`` or ``~/.cache/t2i_hpc``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2i_hpc"


def weights_of(file: WeightsFile, what: str, given: str) -> Path:
    """Return the path of a detector's weights: `given`, or the fetched file where it is "".

    Args:
        file: the published file.
        what: its name for ``t2i_hpc.fetch``.
        given: ``evaluation.detector_weights``.

    Raises:
        EvaluationError: the file is missing, or the fetched one is damaged.
    """
    path = Path(given) if given else cache_folder() / file.name
    if not path.is_file():
        raise EvaluationError(
            f"the weights of {NETWORKS[what]} are missing at {path}: run python -m t2i_hpc.fetch "
            f"what={what} on a machine with internet and copy {file.name} to "
            f"{cache_folder()}, or give its place with evaluation.detector_weights=FILE"
        )
    if not given and not file.is_in(path.parent):
        raise EvaluationError(
            f"{path} is damaged (its SHA-256 does not begin with {file.sha256_prefix}): delete "
            f"it and run python -m t2i_hpc.fetch what={what} again"
        )
    return path


def fetch(file: WeightsFile, folder: Path, url: str) -> Path:
    """Download a weights file into `folder`; it appears there only when its hash is right.

    Args:
        file: what the file must be.
        folder: where to put it; made where it does not exist.
        url: where to take it from (http, https or file).

    Raises:
        EvaluationError: no connection, or the content is another file.
    """
    path = folder / file.name
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as source:
            length = source.headers.get("Content-Length")
            size = int(length) if length else None
            with atomic_writer(path) as target, progress(file.name, size, "bytes") as advance:
                _check(_copy(source, target, advance), file, url)
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise EvaluationError(
            f"cannot download {url} to {folder} ({reason}): run this on a machine with internet "
            f"and copy {file.name} to {folder}, or give a mirror with url=…"
        ) from error
    return path


def _copy(source: IO[bytes], target: IO[bytes], advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    while block := source.read(_BLOCK_BYTES):
        target.write(block)
        digest.update(block)
        advance(len(block))
    return digest.hexdigest()


def _check(digest: str, file: WeightsFile, url: str) -> None:
    if not digest.startswith(file.sha256_prefix):
        raise EvaluationError(
            f"{url} is not {file.name}: its SHA-256 begins with {digest[:8]}, not with "
            f"{file.sha256_prefix}; the download broke off or the URL is wrong, try again"
        )
