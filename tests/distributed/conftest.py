"""One process that has imported all, from which training processes are forked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.preloaded import Nursery, nursery


@pytest.fixture(scope="session")
def home() -> Iterator[Nursery]:
    with nursery("deepspeed") as made:
        yield made
