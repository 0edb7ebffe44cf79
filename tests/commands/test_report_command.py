"""The command `report`: two files and their paths, or one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from t2i_hpc.report import COMMAND
from tests.reporting.made_up import make_run


def test_it_writes_a_page_and_a_picture_and_says_where(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo-1a2b3c4d")
    command = [sys.executable, "-m", "t2i_hpc.report", f"run={run}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page, picture = map(Path, done.stdout.split())
    assert (page, picture) == (run / "report.html", run / "report.png")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    with Image.open(picture) as opened:
        assert opened.format == "PNG"


def test_the_page_can_go_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert COMMAND.main([f"run={run}", f"output={tmp_path}/pages/demo.html"]) == 0
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"demo.html", "demo.png"}
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("kind", ["missing", "no run", "empty", "unnamed", "no page"])
def test_what_cannot_be_reported_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    (tmp_path / "folder").mkdir()
    empty = make_run(tmp_path / "empty", steps=0, grids=0, scores=0)
    words, said = {
        "missing": ([f"run={tmp_path}/nowhere"], "there is no folder"),
        "no run": ([f"run={tmp_path}/folder"], "is no run"),
        "empty": ([f"run={empty}"], "nothing to show yet"),
        "unnamed": ([], "no run is named"),
        "no page": ([f"run={empty}", f"output={tmp_path}/folder"], "is no HTML file"),
    }[kind]
    assert COMMAND.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("t2i_hpc.report: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
