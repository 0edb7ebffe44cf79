"""The command `fetch`: downloads whole or not at all; tested on files, without internet."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_hpc.evaluation.detectors import weights
from t2i_hpc.evaluation.detectors.weights import WeightsFile
from t2i_hpc.fetch import COMMAND

NAME = "weights-inception-2015-12-05-6726825d.pth"


def _fetch(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "t2i_hpc.fetch", "what=inception", *words],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_another_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "made-up.pth"
    source.write_bytes(b"no weights at all")
    result = _fetch(tmp_path, f"url={source.as_uri()}")
    assert result.returncode == 2
    sentence = result.stderr.splitlines()[-1]
    assert f"{source.as_uri()} is not {NAME}" in sentence
    assert "6726825d" in sentence
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob(f"*{NAME}*"))


def test_offline_is_one_sentence(tmp_path: Path) -> None:
    result = _fetch(tmp_path, "url=http://127.0.0.1:9/weights.pth")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "run this on a machine with internet" in result.stderr
    assert str(tmp_path / "cache" / "t2i_hpc") in result.stderr


def test_a_right_file_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = b"a stand-in for weights"
    source = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    source.write_bytes(content)
    monkeypatch.setattr(weights, "inception_file", lambda: WeightsFile(source.as_uri()))
    fetched = tmp_path / "out" / source.name
    assert COMMAND.main([f"output={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out == f"fetched {fetched}\n"
    assert fetched.read_bytes() == content
    source.unlink()
    assert COMMAND.main([f"output={tmp_path / 'out'}"]) == 0
    assert "is there already and whole" in capsys.readouterr().out
