"""The command `generate`: word swaps, grids, the record, and images that stay."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2i_hpc.generate import COMMAND
from tests.support.training import only_run, run_task, train_tiny

SWAP = 'captions=["a {red,blue,zeppelin} circle","one square"]'


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    train_tiny(shards, runs, "engine.images=8")
    return only_run(runs)


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images generated as a person would, in a folder of their own."""
    output = tmp_path_factory.mktemp("made") / "birds"
    done = run_task("generate", f"run={run}", SWAP, "columns=3", f"output={output}", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ("unknown words left out of 'a {red,blue,zeppelin} circle': zeppelin\n")
    files = [Path(line) for line in done.stdout.splitlines()]
    assert files == [
        output / name for name in ("pictures.png", "masks.png", "pairs.png", "pictures.json")
    ]
    assert all(path.is_file() for path in files)
    return output


def pixels(picture: Image.Image, box: list[int]) -> Any:
    left, top, width, height = box
    return np.asarray(picture.convert("RGB").crop((left, top, left + width, top + height)))


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
    return content


def test_the_record_says_what_every_picture_is(run: Path, made: Path) -> None:
    told = record(made)
    captions = ["a red circle", "a blue circle", "a zeppelin circle", "one square"]
    assert told["captions"] == captions
    assert (told["run"], told["images_seen"], told["seed"], told["columns"]) == (run.name, 8, 1, 3)
    assert len(told["checkpoint_sha256"]) == 64
    assert [row["asked"] for row in told["rows"]][2] == "a {red,blue,zeppelin} circle"
    assert told["rows"][2]["words"] == ["a", "circle"]
    assert told["rows"][2]["unknown"] == ["zeppelin"]
    places = [(p["row"], p["column"], p["caption"], p["noise"]) for p in told["pictures"]]
    assert places == [(r, c, captions[r], c) for r in range(4) for c in range(3)]
    with Image.open(made / "pictures.png") as grid:
        for picture in told["pictures"]:
            content = pixels(grid, picture["box"]).tobytes()
            assert hashlib.sha256(content).hexdigest() == picture["sha256"]


def test_pairs_have_each_picture_beside_a_grey_mask(made: Path) -> None:
    pictures = record(made)["pictures"]
    with Image.open(made / "pictures.png") as grid, Image.open(made / "pairs.png") as pairs:
        left = pictures[0]["box"][0]
        for picture in pictures:
            top = picture["box"][1]
            at = left + 2 * picture["column"] * 66
            mask, image = (pixels(pairs, [x, top, 64, 64]) for x in (at, at + 66))
            assert (image == pixels(grid, picture["box"])).all()
            assert (mask == mask[:, :, :1]).all()


def test_masks_of_all_blocks_stand_beside_each_captions_first_picture(made: Path) -> None:
    pictures = record(made)["pictures"]
    with Image.open(made / "pictures.png") as grid, Image.open(made / "masks.png") as masks:
        left = pictures[0]["box"][0]
        head = masks.height - (4 * 66 - 2)
        assert head > 0
        assert masks.width == left + 6 * 66 - 2  # the picture and five blocks of 4 to 64 px
        for picture in pictures[::3]:
            box = [left, head + picture["box"][1], 64, 64]
            assert (pixels(masks, box) == pixels(grid, picture["box"])).all()


def test_a_column_has_one_noise(run: Path, tmp_path: Path) -> None:
    """Two rows of one text are equal picture by picture; two columns are not."""
    words = [f"run={run}", 'captions=["a red circle","a red circle"]', "device=cpu"]
    assert COMMAND.main([*words, "columns=2", "masks=false", f"output={tmp_path}"]) == 0
    hashes = [picture["sha256"] for picture in record(tmp_path)["pictures"]]
    assert hashes[:2] == hashes[2:]
    assert hashes[0] != hashes[1]
    assert not (tmp_path / "masks.png").exists()


def test_another_drawing_is_never_overwritten(
    run: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    words = [f"run={run}", SWAP, "device=cpu", f"output={made}"]
    assert COMMAND.main([*words, "columns=2"]) == 2
    assert "holds other images" in capsys.readouterr().err
    assert COMMAND.main([*words, "columns=3"]) == 0
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    assert COMMAND.main([*words[:-1], f"output={made / 'pictures.png'}"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_drawings_inside_the_run_have_a_folder_each(run: Path) -> None:
    words = [f"run={run}", 'captions=["a red circle"]', "columns=1", "device=cpu"]
    for seed in (1, 2, 2):
        assert COMMAND.main([*words, f"seed={seed}"]) == 0
    folders = list((run / "generated").iterdir())
    assert len(folders) == 2
    assert {record(folder)["seed"] for folder in folders} == {1, 2}
    assert all(record(folder)["asked"] == folder.name for folder in folders)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ('captions=["a {red"]', "open or nested"),
        ('captions=["{1,2,3,4,5}{1,2,3,4,5}{1,2,3,4,5}"]', "make 125 rows"),
        ("captions_file=/nowhere.txt", "captions_file=/nowhere.txt cannot be read"),
    ],
)
def test_wrong_captions_are_refused_before_the_run_is_opened(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND.main(["run=/nowhere", word]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
