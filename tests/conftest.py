"""Shared fixtures: small shards made once a session and process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Tests run side by side: threads of BLAS that wait for each other cost more than they give.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch reads it at its import

import pytest
import torch

from tests.support.data import make_shards
from tests.support.groups import without_group

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with 24 samples and a train and a test split."""
    return make_shards(tmp_path_factory.mktemp("data"), count=24, size=64)


@pytest.fixture
def restored_flags() -> Iterator[None]:
    """Leave torch's switches of arithmetic as they were."""
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    whole = torch.are_deterministic_algorithms_enabled()
    yield
    products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
    torch.use_deterministic_algorithms(whole)


@pytest.fixture
def of_no_group() -> Iterator[None]:
    """Let this process be of no group, whatever an earlier test left."""
    with without_group():
        yield
