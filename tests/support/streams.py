"""Batches of a configuration, to be compared with those of another."""

from __future__ import annotations

import itertools

import torch

from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.loader import Loader
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import indexed_loader


def stream_of(config: DataConfig) -> Loader:
    """Open the training split's stream of small batches."""
    return indexed_loader(config, Split.open(config, "train"), 16, 3, RankSlice(8))


def take(config: DataConfig, count: int = 6) -> list[Batch]:
    """Return the first batches."""
    batches = stream_of(config).batches(0)
    taken = list(itertools.islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return taken


def equal(ours: Batch, theirs: Batch) -> bool:
    """Tell whether two batches are the same to the bit."""
    tensors = ("images", "tokens", "lengths", "classes", "positions")
    same = all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in tensors)
    return same and list(ours.captions) == list(theirs.captions) and ours.keys == theirs.keys


def assert_expected(found: list[Batch], expected: list[Batch]) -> None:
    """Fail unless both are the same batches."""
    assert len(found) == len(expected)
    assert all(map(equal, found, expected))
