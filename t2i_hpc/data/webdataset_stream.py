"""The endless stream over tars that have no manifest yet: webdataset's pipeline, drawn at random.

What a manifest buys is what this stream cannot promise, and says so when it starts: there is no
list of samples, so there is no order that all ranks and restarts could agree on. Each loader
process of each rank draws tars of its own, with replacement: none waits for one with fewer tars.

webdataset draws, groups and shuffles. Members come by the walk and the rules that
``source=webdataset`` has (:mod:`t2i_hpc.data.sidecars`): tarfile, with which webdataset reads, ends
quietly at a damaged header. What cannot be used is named, and too much of it ends the run.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import webdataset
from webdataset.tariterators import group_by_keys

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import BatchMaker, BatchPlan
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.images import PixelBuffer, Pixels, decode, resize_shorter, window
from t2i_hpc.data.loader import Loader
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.sidecars import NO_CLASS, Rules, UnfitSample, is_sample, split_name
from t2i_hpc.data.storage.fetching import Server, expand_braces, is_remote
from t2i_hpc.data.storage.retry import shown
from t2i_hpc.data.tar_members import Losses, members_of_tars
from t2i_hpc.data.tar_reader import StoredSample

NOT_PROMISED = (
    "data.reader=webdataset draws tars at random, so these do not hold: an exact order of "
    "samples; every sample once an epoch; resuming at the very sample; the same batch for any "
    "number of ranks and workers. Shards made by t2i_hpc.shards source=webdataset have them all"
)
_LOG = logging.getLogger(__name__)


def webdataset_loader(
    config: DataConfig,
    vocabulary: Vocabulary,
    resolution: int,
    seed: int,
    rank_slice: RankSlice,
    *,
    answer_within: float = 600.0,
) -> Loader:
    """Return what makes a rank's batches of the tars in ``config.urls``; see OpenLoader.

    The samples follow from where the batches start, and from the numbers of ranks and workers.

    Raises:
        UserError: no tars are named, one in a folder is not there, or an address is not offered.
    """
    expand(config.urls)

    def make(start: int) -> BatchMaker:
        return _DrawnBatches(vocabulary, config, resolution, seed, start=start)

    return Loader(make, rank_slice, config.workers, answer_within)


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
    urls = expand_braces(patterns, "data.urls")
    here = [url for url in urls if not is_remote(url, "data.urls")]
    if missing := [url for url in here if not Path(url).is_file()]:
        raise DataError(
            f"data.urls names {missing[0]}, which is not there ({len(missing):,} of {len(urls):,} "
            "tars are missing): correct the pattern"
        )
    return urls


class _DrawnBatches(BatchMaker):
    """Makes batches of samples as they come; the first position that is asked decides which."""

    def __init__(
        self, vocabulary: Vocabulary, config: DataConfig, resolution: int, seed: int, *, start: int
    ) -> None:
        super().__init__(vocabulary, config, resolution, seed)
        self._config, self._start = config, start
        self._losses, self._buffer = Losses(config.max_lost), PixelBuffer()
        self._samples: Iterator[tuple[StoredSample, Pixels]] | None = None
        self._warns_of_upscaling = False

    def plan(self, batches: Iterable[Sequence[int]]) -> Iterator[BatchPlan]:
        """Say what is known of batches beforehand: the draws, not the samples."""
        return (BatchPlan(positions, (), self.draws(positions)) for positions in batches)

    def _sample(self, plan: BatchPlan, row: int) -> tuple[StoredSample, Pixels]:
        position, drawn = plan.positions[row], plan.draws[row]
        if self._samples is None:
            self._warns_of_upscaling = position == self._start  # one process of all
            self._samples = iter(self._pipeline(position))
        stored, image = next(self._samples)
        if stored.class_id == NO_CLASS:
            stored = replace(stored, class_id=-1 - position)  # below zero, as nobody gives one
        return stored, window(image, self.resolution, drawn.down, drawn.across)

    def _pipeline(self, position: int) -> Any:
        config, rng = self._config, generator(self.seed, "tars of a webdataset stream", position)
        seed, server = int(rng.integers(1 << 62)), Server(config.retry_seconds)
        urls = expand_braces(config.urls, "data.urls")
        rules = Rules(config.image_member, config.caption_member, config.caption_key)
        return webdataset.DataPipeline(
            webdataset.ResampledShards(urls, seed=seed, worker_seed=lambda: 0, deterministic=True),
            partial(members_of_tars, server=server, rules=rules, losses=self._losses),
            partial(group_by_keys, keys=split_name),
            webdataset.select(partial(is_sample, rules=rules)),
            webdataset.shuffle(config.shuffle_buffer, rng=random.Random(seed)),
            webdataset.map(partial(self._decoded, rules=rules)),
        )

    def _decoded(self, members: dict[str, Any], rules: Rules) -> tuple[StoredSample, Pixels] | None:
        """Return a sample and its image, scaled for the crop; None if it cannot be used."""
        key, url = members.pop("__key__"), shown(members.pop("__url__"))
        try:
            stored = StoredSample.of_members(members, rules)
            image = stored.upright(decode(stored.image, f"{key} in {url}", self._buffer))
        except (DataError, UnfitSample) as error:
            self._losses.add(f"{key} in {url}", str(error))
            return None
        self._losses.used += 1
        if self._warns_of_upscaling and (side := min(image.shape[:2])) < self.resolution:
            self._warns_of_upscaling = False
            what = f"{key} in {url} has a shorter side of {side} px, below the resolution of"
            _LOG.warning("%s %d px: such images are scaled up", what, self.resolution)
        stored = stored if stored.key else replace(stored, key=key)
        return stored, resize_shorter(image, self.load_size)
