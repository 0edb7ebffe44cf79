"""The GPU that tests run on, their order by worth, and the moment from which none begins.

`GPU_TESTS_ON=cpu` rehearses the tests on the CPU; `GPU_TESTS_UNTIL` is a time in Unix seconds.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

# What is not named comes after all that is; what compiles for a minute comes last.
ORDER = ("test_steps", "test_batch_norm", "test_runs", "test_ranks", "test_scoring", "test_device")
LAST = ("test_compile",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of this folder into their order; others stay before them."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    if item.path.parent != Path(__file__).parent:
        return -1
    name = item.path.stem
    if name in LAST:
        return len(ORDER) + 1
    return ORDER.index(name) if name in ORDER else len(ORDER)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin no test of this folder after the time that was given."""
    end = os.environ.get("GPU_TESTS_UNTIL")
    if end is not None and time.time() > float(end):
        pytest.skip("did not fit into the time for tests")


@pytest.fixture
def device() -> torch.device:
    """The GPU, or in a rehearsal the CPU."""
    if os.environ.get("GPU_TESTS_ON") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU (GPU_TESTS_ON=cpu rehearses this on the CPU)")
    return torch.device("cuda", 0)


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """A real GPU, for what a rehearsal cannot do."""
    if device.type != "cuda":
        pytest.skip("only a GPU does this")
    return device
