"""What tests of commands share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from t2i_hpc.evaluate import COMMAND
from tests.commands.trained import make_run
from tests.support.data import make_shards


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    return make_run(folder / "run", make_shards(folder, count=12))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def refusal(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Give a function that calls `evaluate` and returns the one sentence of its refusal."""

    def refuse(*words: str) -> str:
        capfd.readouterr()
        assert COMMAND.main(list(words)) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        return err

    return refuse
