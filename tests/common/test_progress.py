"""Progress goes to standard error, as plain lines where there is no terminal."""

from __future__ import annotations

import pytest

from t2i_hpc.common.terminal import progress


def test_a_log_gets_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("real images", 2000, "images") as advance:
        advance(500)
        advance(1500)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("real images: 2,000 of 2,000 images (")


def test_an_unknown_total(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("file", None, "bytes") as advance:
        advance(500)
    assert " of " not in capsys.readouterr().err


def test_a_log_says_how_long_it_will_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 120.0])
    monkeypatch.setattr("t2i_hpc.common.terminal.time.monotonic", lambda: next(clock))
    with progress("images", 1000, "images") as advance:
        advance(100)
    assert "(5.0 images/s, 0:03:00 left)" in capsys.readouterr().err
