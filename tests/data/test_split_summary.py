"""What a split holds, in figures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from t2i_hpc.data.split_summary import histogram
from t2i_hpc.shards import COMMAND
from tests.support.data import make_shards


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("built"), count=12, shard_samples=5)


def test_the_figures_of_a_split(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its captions have 3, 11 and 7 words."""
    copy = Path(shutil.copytree(built, tmp_path / "copy"))
    picture = tmp_path / "histograms.png"
    assert COMMAND.main(["info", str(copy / "train"), f"output={picture}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{copy / 'train'}: 12 samples in 3 shards, ")
    assert lines[0].endswith(" (12 png)")
    assert lines[2:8] == [
        "of all samples:",
        "  captions of an image  3",
        "  tokens of a caption   3 to 11, median 7",
        "  unknown words         0.00%",
        "  shorter side          40 px",
        "  classes               3",
    ]
    assert lines[9:12] == [
        "tokens of a caption",
        "               3        12 " + 40 * "█",
        "               4         0",
    ]
    assert Image.open(picture).size == (1080, 312)
    assert COMMAND.main(["info", str(copy), "samples=4"]) == 0
    assert capsys.readouterr().out.count("of 4 samples:") == 2


def test_a_wide_range_has_few_lines() -> None:
    assert list(histogram([1, 2, 100])) == [
        "          1 to 9         2 " + 40 * "█",
        *(f"{f'{low} to {low + 8}':>16}         0" for low in range(10, 100, 9)),
        "      100 to 108         1 " + 20 * "█",
    ]


@pytest.mark.parametrize("given", ["some", "0", "-3"])
def test_a_number_that_is_none_is_refused(
    built: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND.main(["info", str(built), f"samples={given}"]) == 2
    assert f"samples={given} is no whole number: write how many to read, or all" in (
        capsys.readouterr().err
    )
