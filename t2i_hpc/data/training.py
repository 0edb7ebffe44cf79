"""What a run trains on, whichever way its data is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import sha256_of_json
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.loader import Loader
from t2i_hpc.data.share import Share
from t2i_hpc.data.split import Split, open_vocabulary
from t2i_hpc.data.storage.urls import shown
from t2i_hpc.data.stream import Stream
from t2i_hpc.data.webdataset_stream import NOT_PROMISED, WebDatasetStream, expand


@dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes:
        identity: SHA-256 of all that decides tokens and pixels but for the settings of a run:
            what holds the samples, and the vocabulary that numbers their words.
        content: SHA-256 of what holds the samples alone.
        summary: how much of it there is, for people.
        samples: how many samples an epoch has; None: nobody knows.
        vocabulary: of its captions.
        notice: what does not hold that usually does, for people; usually empty.
        stream: is given resolution, seed and the share of a rank; returns a stream.
    """

    identity: str
    content: str
    summary: str
    samples: int | None
    vocabulary: Vocabulary
    notice: str
    stream: Callable[..., Any]

    def loader(
        self, resolution: int, seed: int, share: Share, answer_within: float = 600.0
    ) -> Loader:
        """Return what makes a rank's batches from a number of samples seen on.

        Args:
            resolution: side of the images in pixels.
            seed: of order, captions and crops.
            share: this rank's part of each global batch.
            answer_within: seconds without a batch after which a loader process counts as stuck.

        Raises:
            UserError: whatever is wrong with the data or its values.
        """
        stream = self.stream(
            resolution=resolution, seed=seed, share=share, answer_within=answer_within
        )
        loader: Loader = stream.loader
        return loader

    def epoch(self, setting: str) -> int:
        """Return the number of samples of an epoch.

        Raises:
            ConfigurationError: nobody knows it; names the setting that can give it.
        """
        if self.samples is None:
            raise ConfigurationError(
                "data.reader=webdataset does not know how many samples its tars hold: give "
                f"{setting}="
            )
        return self.samples


def fit_to_timeout(config: DataConfig, timeout: float, ranks: int) -> tuple[DataConfig, float]:
    """Return settings and a deadline with which a rank names its trouble before others give it up.

    Args:
        config: of the data.
        timeout: seconds that other ranks wait for this one (``engine.timeout``).
        ranks: how many there are; one alone may wait for as long as it likes.

    Returns:
        The settings, whose patience is half of the timeout at most, and the seconds without a
        batch after which a loader process counts as stuck: between patience and timeout.
    """
    if ranks == 1:
        return config, config.patience + timeout
    patience = min(config.patience, timeout / 2)
    return replace(config, patience=patience), (patience + timeout) / 2


def open_training_data(config: DataConfig, check_tars: bool = True) -> TrainingData:
    """Open what ``data.reader`` and the rest of a configuration name.

    Args:
        config: of the data.
        check_tars: look whether the tars are there; one rank is enough for all.

    Raises:
        UserError: it is not there, damaged, or contradictory.
    """
    return _READERS[config.reader](config, check_tars)


def _open_indexed(config: DataConfig, check_tars: bool) -> TrainingData:
    if config.urls:
        raise ConfigurationError(
            "data.urls= belongs to data.reader=webdataset: set that, or name a folder of shards "
            "with data.path= alone"
        )
    split = Split.open(config, config.train_split, check_tars)
    return TrainingData(
        identity=sha256_of_json(
            {"manifest": split.manifest.digest, "vocabulary": split.vocabulary.sha256}
        ),
        content=split.manifest.digest,
        summary=f"{split.count:,} samples of {config.name}",
        samples=split.count,
        vocabulary=split.vocabulary,
        notice="",
        stream=partial(Stream, config, split),
    )


def _open_webdataset(config: DataConfig, _: bool) -> TrainingData:
    urls, vocabulary = expand(config.urls), open_vocabulary(config)
    names = [shown(url) for url in urls]
    members = [config.image_member, config.caption_member, config.caption_key]
    chosen = {"members": members} if any(members) else {}
    return TrainingData(
        identity=sha256_of_json({"urls": names, "vocabulary": vocabulary.sha256} | chosen),
        content=sha256_of_json({"urls": names} | chosen),
        summary=f"{len(urls):,} tars of {config.name}",
        samples=None,
        vocabulary=vocabulary,
        notice=NOT_PROMISED,
        stream=partial(WebDatasetStream, config, vocabulary),
    )


_READERS = {"indexed": _open_indexed, "webdataset": _open_webdataset}
