"""Reference statistics as files: mean and covariance of the real images' features.

pytorch-fid, TTUR, clean-fid, ADM and EDM write ``.npz`` files with ``mu`` and ``sigma``. Such a
file says neither which network made the features nor how images were resized for it, and of how
many images they are only in some cases. So a score against it says what is not known, and its
protocol has the file's SHA-256 in place of the images'. What we write ourselves says all of it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import atomic_writer, sha256_of_file
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity
from t2i_hpc.evaluation.fid import Gaussian

SUFFIX = ".npz"
_COUNTS = ("n", "N", "count", "num_images", "num_samples")  # what files call their number of images
_IMAGES = "arr_0"  # ADM's files hold the images as well
_SPATIAL = ("mu_s", "sigma_s")  # ADM's and EDM's, of sFID
_DETECTOR, _PREPROCESSING, _SET = "detector_sha256", "preprocessing", "real_images"
_HALVES = ("real_halves", "real_halves_protocol")
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
# np.cov of float32 features is symmetric to rounding alone.
_ASYMMETRY = 1e-5


@dataclass(frozen=True)
class ReferenceStatistics:
    """A file of statistics that images are compared with.

    Attributes:
        path: the file.
        sha256: its identity.
        gaussian: mean, covariance and, where the file knows it, the number of images.
        known: whether the file says which network and resizing made it.
        unused: what else it holds and no metric of ours takes.
        real_halves: distance of real images from other real ones, and the hash of which ones.
    """

    path: Path
    sha256: str
    gaussian: Gaussian
    known: bool
    unused: Sequence[str] = ()
    real_halves: tuple[float, str] | None = None

    @property
    def stored(self) -> str:
        """What a protocol says of how the real images are stored."""
        made = "by this detector" if self.known else "by a network and a resizing that it omits"
        return f"mean and covariance in a file, made {made}"

    def warning(self, detector: DetectorIdentity) -> str | None:
        """Return what moves the score and is not known, None where all of it is."""
        unused = f"; its {' and '.join(self.unused)} (sFID) are not used" if self.unused else ""
        if self.known:
            return None
        return (
            f"reference={self.path} does not say which network made it nor how images were "
            f"resized: the score means something only if that was as here ({detector.label}; "
            f"{detector.preprocessing}){unused}"
        )


def read_reference(path: Path, detector: DetectorIdentity) -> ReferenceStatistics:
    """Read a file of reference statistics; no pickle in it is opened.

    Args:
        path: a .npz file with `mu` (D,) and `sigma` (D, D).
        detector: whose features they must be.

    Raises:
        EvaluationError: it is damaged, holds no such statistics, or they are another network's.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            mean, covariance = (_array(path, archive, name) for name in ("mu", "sigma"))
            count = _count(archive)
            halves = None
            if {*_HALVES} <= {*names}:
                halves = float(archive[_HALVES[0]]), str(archive[_HALVES[1]])
            written = {k: str(archive[k]) for k in (_DETECTOR, _PREPROCESSING) if k in names}
    except _UNREADABLE as error:
        raise EvaluationError(
            f"reference={path} cannot be read ({error}): name a .npz file with the arrays mu and "
            "sigma, as pytorch-fid --save-stats and TTUR write it"
        ) from error
    _check_statistics(path, mean, covariance, detector)
    _check_detector(path, written, detector)
    gaussian = Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance), count)
    unused = [name for name in _SPATIAL if name in names]
    digest = sha256_of_file(path)
    return ReferenceStatistics(path, digest, gaussian, bool(written), unused, halves)


def write_reference(
    path: Path,
    gaussian: Gaussian,
    detector: DetectorIdentity,
    image_set: str,
    real_halves: tuple[float, str] | None = None,
) -> None:
    """Write statistics as pytorch-fid and clean-fid read them, with what they leave out.

    Args:
        path: the .npz file.
        gaussian: of the real images' features.
        detector: that made the features.
        image_set: hash of the real images as the detector sees them.
        real_halves: distance of real images from other real ones, and the hash of which ones.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "mu": gaussian.mean.cpu().numpy(),
        "sigma": gaussian.covariance.cpu().numpy(),
        _COUNTS[0]: np.array(gaussian.count or 0),
        _DETECTOR: np.array(detector.sha256),
        _PREPROCESSING: np.array(detector.preprocessing),
        _SET: np.array(image_set),
    }
    for name, value in zip(_HALVES, real_halves or (), strict=False):
        arrays[name] = np.array(value)
    with atomic_writer(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def check_export(path: Path, image_set: str) -> bool:
    """Return whether statistics are still to be written; those of the same images may be there.

    Raises:
        EvaluationError: the file is no .npz file, or holds something else.
    """
    if path.suffix != SUFFIX:
        raise EvaluationError(f"export_statistics={path} is no {SUFFIX} file: name one")
    if not path.exists():
        return True
    try:
        with np.load(path, allow_pickle=False) as archive:
            same = str(archive[_SET]) == image_set
    except _UNREADABLE:
        same = False
    if not same:
        raise EvaluationError(
            f"export_statistics={path} holds something else already: name another file, or delete "
            "it first"
        )
    return False


def _array(path: Path, archive: Any, name: str) -> npt.NDArray[np.float64]:
    if name not in archive.files:
        found = ", ".join(archive.files) or "nothing"
        raise EvaluationError(
            f"reference={path} has no {name}; it holds {found[:200]}: name a file with the arrays "
            "mu and sigma"
        )
    values: npt.NDArray[Any] = archive[name]
    if not np.issubdtype(values.dtype, np.floating):
        raise EvaluationError(f"{name} of reference={path} is {values.dtype}, not real numbers")
    return values.astype(np.float64)


def _count(archive: Any) -> int | None:
    """Return the number of images where the file knows it; images in it are not read."""
    for name in _COUNTS:
        if name in archive.files and archive[name].shape == ():
            found = int(archive[name])
            return found if found > 1 else None
    if _IMAGES not in archive.files:
        return None
    with archive.zip.open(f"{_IMAGES}.npy") as stream:
        if np.lib.format.read_magic(stream) == (1, 0):
            shape, _, _ = np.lib.format.read_array_header_1_0(stream)
            return int(shape[0]) if len(shape) == 4 else None
    return None


def _check_statistics(
    path: Path,
    mean: npt.NDArray[np.float64],
    covariance: npt.NDArray[np.float64],
    detector: DetectorIdentity,
) -> None:
    width = detector.width
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise EvaluationError(
            f"reference={path} has mu {mean.shape} and sigma {covariance.shape}, and "
            f"{detector.name} has {width:,} features: take the evaluation.detector= that made it "
            "(FID's inception has 2,048), or another file"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise EvaluationError(f"reference={path} holds NaN or Inf: get the file again")
    largest = float(np.abs(covariance).max())
    apart = float(np.abs(covariance - covariance.T).max())
    if covariance.diagonal().min() < 0 or apart > _ASYMMETRY * largest:
        raise EvaluationError(
            f"sigma of reference={path} is no covariance (not symmetric, or with negative "
            "variances): get the file again"
        )


def _check_detector(path: Path, written: dict[str, str], detector: DetectorIdentity) -> None:
    """Compare what a file of ours says of its detector.

    Raises:
        EvaluationError: it is another one.
    """
    here = {_DETECTOR: detector.sha256, _PREPROCESSING: detector.preprocessing}
    for name, value in written.items():
        if value != here[name]:
            raise EvaluationError(
                f"reference={path} was made with another detector ({name.replace('_', ' ')} "
                f"{value[:60]}, not {here[name][:60]}): take that one, or another file"
            )
