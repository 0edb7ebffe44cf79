"""The endless stream over tars that have no manifest yet.

What a manifest buys is what this stream cannot promise, and says so when it starts: there is no
list of samples, so there is no order that all ranks and restarts could agree on. It never ends
and never waits for a rank with fewer tars, since each loader process of each rank draws tars of
its own, with replacement.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import DRAWS, Batch, BatchMaker, Planned
from t2i_hpc.data.build.sources.webdataset_tars import Rules, UnfitSample
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.images import (
    Pixels,
    Scratch,
    decode,
    notes_of,
    resize_shorter,
    turn,
    window,
)
from t2i_hpc.data.loader import Loader, Positions
from t2i_hpc.data.permutation import uniform
from t2i_hpc.data.reader import StoredSample
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.storage.urls import is_remote, shown
from t2i_hpc.data.webdataset_samples import Losses, endless_samples, stored_sample

NOT_PROMISED = (
    "data.reader=webdataset draws tars at random, so these do not hold: an exact order of "
    "samples; every sample once an epoch; resuming at the very sample; the same batch for any "
    "number of ranks and workers. Shards made by t2i_hpc.shards source=webdataset have them all"
)


class WebDatasetStream:
    """One rank's part of the global batches.

    Args:
        config: urls, how samples are made (words, margin, flip, shuffle_buffer), workers.
        vocabulary: of the captions.
        resolution: side of the images in pixels.
        seed: of tars, captions and crops.
        share: this rank's part of each global batch.

    Raises:
        ConfigurationError: no tars are named.
        DataError: a tar in a folder is not there, or an address is not offered.
    """

    def __init__(
        self,
        config: DataConfig,
        vocabulary: Vocabulary,
        resolution: int,
        seed: int,
        share: RankSlice,
        *,
        answer_within: float = 600.0,
    ) -> None:
        self._config, self._vocabulary = config, vocabulary
        self._resolution, self._seed = resolution, seed
        self._share = share
        self._urls = expand(config.urls)
        self.loader = Loader(self._begin, config.workers, answer_within)

    def batches(self, start: int) -> Iterator[Batch]:
        """Return batches without end, whose positions begin at sample `start` ≥ 0.

        Closing the iterator ends its workers. The samples at the positions depend on where the
        stream started and on the numbers of ranks and workers.

        Raises:
            DataError: a tar cannot be read, or too many samples cannot be used.
            RunError: a loader process died or does not answer.
        """
        return self.loader.batches(start)

    def _begin(self, start: int) -> tuple[BatchMaker, Positions]:
        samples = _Drawn(
            self._urls,
            self._vocabulary,
            self._config,
            self._resolution,
            self._seed,
            start=start,
        )
        return samples, self._share.positions(start)


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the tars that brace patterns name, such as ``s3://bucket/{000..127}.tar``.

    Raises:
        ConfigurationError: nothing is named, or braces do not match.
        DataError: a tar in a folder is not there, or an address is not offered.
    """
    if not any(patterns):
        raise ConfigurationError(
            "data.reader=webdataset needs data.urls=…, the tars to read: paths or addresses, "
            "with {000..127} for many"
        )
    try:
        urls = [url for pattern in patterns for url in braceexpand(pattern)]
    except ValueError as error:
        raise ConfigurationError(f"data.urls: {error}") from error
    here = [url for url in urls if not is_remote(url, "data.urls")]
    missing = [url for url in here if not Path(url).is_file()]
    if missing:
        raise DataError(
            f"data.urls names {missing[0]}, which is not there ({len(missing):,} of {len(urls):,} "
            "tars are missing): correct the pattern"
        )
    return urls


class _Drawn(BatchMaker):
    """Makes batches of samples as they come.

    Each process that fills batches draws tars of its own, by the first position it is given.
    """

    def __init__(
        self,
        urls: Sequence[str],
        vocabulary: Vocabulary,
        config: DataConfig,
        resolution: int,
        seed: int,
        *,
        start: int,
    ) -> None:
        super().__init__(vocabulary, config, resolution, seed)
        self._urls, self._config, self._start = urls, config, start
        self._losses, self._scratch = Losses(config.max_lost), Scratch()
        self._rules = Rules(config.image_member, config.caption_member, config.caption_key)
        self._samples: Iterator[dict[str, Any]] | None = None
        self._warns_of_upscaling = False

    def plan(self, batches: Iterable[Sequence[int]]) -> Iterator[Planned]:
        """Say what is known of batches beforehand: the draws, not the samples."""
        for positions in batches:
            yield Planned(positions, (), uniform(self.seed, positions, DRAWS).tolist())

    def _sample(self, planned: Planned, row: int) -> tuple[StoredSample, Pixels]:
        _, down, across, _ = planned.draws[row]
        stored, image = self._next(planned.positions[row])
        return stored, window(image, self.resolution, down, across)

    def _next(self, position: int) -> tuple[StoredSample, Pixels]:
        """Return the next sample that can be used and its image, scaled for the crop."""
        if self._samples is None:
            self._samples = self._begin(position)
        for members in self._samples:
            name = f"{members['__key__']} in {shown(members['__url__'])}"
            try:
                stored, told = stored_sample(members, position, self._rules)
                image = decode(stored.image, name, self._scratch)
            except (DataError, UnfitSample) as error:
                self._losses.lose(name, str(error))
                continue
            image = turn(image, notes_of(stored.image).orientation or told)
            self._losses.use()
            self._tell_upscaling(min(image.shape[:2]), name)
            return stored, resize_shorter(image, self.load_size)
        raise RuntimeError("the endless stream ended")

    def _begin(self, position: int) -> Iterator[dict[str, Any]]:
        self._warns_of_upscaling = position == self._start  # one process of all
        rng = generator(self.seed, "tars of a webdataset stream", position)
        return endless_samples(
            self._urls,
            int(rng.integers(1 << 62)),
            self._config.shuffle_buffer,
            patience=self._config.retry_seconds,
            losses=self._losses,
            rules=self._rules,
        )

    def _tell_upscaling(self, shorter: int, name: str) -> None:
        if self._warns_of_upscaling and shorter < self.resolution:
            self._warns_of_upscaling = False
            logging.getLogger(__name__).warning(
                "%s has a shorter side of %d px, below the resolution of %d px: such images are "
                "scaled up",
                name,
                shorter,
                self.resolution,
            )
