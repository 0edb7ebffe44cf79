"""Shared fixtures: small shards made once a session and process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.data import make_shards

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with 24 samples and a train and a test split."""
    return make_shards(tmp_path_factory.mktemp("data"), count=24, size=64)
