"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from t2i_hpc.evaluate import COMMAND


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
