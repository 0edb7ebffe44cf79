"""The images that a generator was trained on, for those metrics that look for copies of them."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_json
from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.data.format.manifest import MANIFEST
from t2i_hpc.data.images import Pixels
from t2i_hpc.data.split import DEMO, Split
from t2i_hpc.data.storage.fetching import is_remote
from t2i_hpc.evaluation.image_sources import ImageFolder, RealImages
from t2i_hpc.runs.inputs import locate_data

_KEY = "evaluation.training"


def training_images(given: str, of_run: Callable[[], RealImages] | None) -> RealImages:
    """Return the training images that a person names, else those of the run.

    Args:
        given: folder of image files or of shards, "" where none is named.
        of_run: opens those of the run; None where no run made the images.

    Raises:
        UserError: nobody says which they are, or they are not there.
    """
    if given:
        return named_training_images(given)
    if of_run is None:
        raise EvaluationError(
            "memorization needs the training images, and a folder of images does not say which "
            f"they were: name their folder, of images or of shards, with {_KEY}="
        )
    return of_run()


def named_training_images(given: str) -> RealImages:
    """Return the training images in a folder of shards (its split "train"), or of image files.

    Raises:
        UserError: there is no such folder, or nothing in it.
    """
    folder = Path(given)
    if given == DEMO or is_remote(given, _KEY) or any(folder.glob(f"*/{MANIFEST}")):
        data = DataConfig(path=given)
        return _of_splits([Split.open(data, data.train_split)], f"{_KEY}={given}")
    images = ImageFolder(folder)
    return RealImages(images.count, images.digest, f"{_KEY}={given}", "files", images.image)


def run_training_images(run: Path, data: DataConfig, named: str) -> RealImages:
    """Return the images of a run's training split, or of all splits of its mixture.

    Args:
        run: the run directory.
        data: of its configuration.
        named: folder of the data, where a person named one.

    Raises:
        UserError: they are not there, or nobody knows how many they are.
    """
    if data.reader == "webdataset":
        raise EvaluationError(
            "memorization compares with numbered training images, and data.reader=webdataset of "
            f"this run numbers none: name a folder of images or of shards with {_KEY}="
        )
    paths = [data.path] if named else data.paths or [data.path]
    each = (dataclasses.replace(data, path=path, paths=[], weights=[]) for path in paths)
    splits = [Split.open(locate_data(run, one, named), data.train_split) for one in each]
    return _of_splits(splits, f"the split {data.train_split!r} of the run's data")


def check_training(settings: EvaluationConfig, found: RealImages) -> int:
    """Return how many training images are compared with.

    Raises:
        EvaluationError: there are fewer than were asked for.
    """
    wanted = max(2, settings.training_images or found.count)
    if found.count < wanted:
        raise EvaluationError(
            f"{found.where} has {found.count:,} images, fewer than "
            f"evaluation.training_images={wanted:,}: take fewer"
        )
    return wanted


def _of_splits(splits: Sequence[Split], where: str) -> RealImages:
    """Return the images of splits, numbered through."""
    digests = [split.manifest.digest for split in splits]
    firsts = list(accumulate((split.count for split in splits), initial=0))

    def image(number: int) -> Pixels:
        source = bisect_right(firsts, number) - 1
        return splits[source].image(number - firsts[source])

    digest = digests[0] if len(digests) == 1 else sha256_of_json(digests)
    return RealImages(firsts[-1], digest, where, splits[0].manifest.stored, image)
