"""Tars without a manifest."""

from __future__ import annotations

import pytest

from tests.support.tars import foreign, write_tars


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tars")
    return write_tars(folder, [foreign(number) for number in range(22)])
