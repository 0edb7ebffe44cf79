"""The command `python -m t2i_hpc.shards` as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.split import Split
from tests.support.data import make_coco, make_cub, make_image_folder


def shards(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command inside `folder`."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-m", "t2i_hpc.shards", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def prepare(folder: Path) -> None:
    make_coco(folder / "coco", 4)
    make_cub(folder / "cub")
    make_image_folder(folder / "mine", range(3), metadata=False)
    (folder / "empty").mkdir()


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("source=coco images=coco/val2017 captions=coco/captions_val2017.json output=out", 4),
        ("source=cub images=cub/CUB_200_2011 captions=cub/text output=out split=test", 2),
        ("source=folder images=mine output=out shard_samples=2 format=webp", 3),
    ],
)
def test_a_split_is_built(tmp_path: Path, words: str, count: int) -> None:
    prepare(tmp_path)
    done = shards(tmp_path, *words.split())
    assert done.returncode == 0, done.stderr
    name = "test" if "split=test" in words else "train"
    split = Split.open(DataConfig(path=str(tmp_path / "out")), name)
    assert split.count == count
    assert done.stdout.startswith(f"out/{name}: {count} samples in ")
    assert f"{split.manifest.bytes:,} bytes" in done.stdout
    assert f"{split.vocabulary.size} words" in done.stdout


def break_image(folder: Path) -> None:
    path = folder / "mine" / "0001.png"
    path.write_bytes(path.read_bytes()[:80])


def nothing(_: Path) -> None:
    pass


COCO = "source=coco images=coco/val2017 output=out captions=coco/"
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no output": ("images=mine", nothing, "output= is missing"),
    "no images": ("output=out", nothing, "images= is missing"),
    "no such folder": ("images=nowhere output=out", nothing, "there is no folder nowhere"),
    "an empty folder": ("images=empty output=out", nothing, "empty has no images"),
    "captions of other images": (
        "source=coco images=empty captions=coco/captions_val2017.json output=out",
        nothing,
        "4 of 4 images with captions are not in empty, the first is 000000001000.jpg",
    ),
    "an image without captions": (
        "images=mine output=out",
        lambda folder: (folder / "mine" / "0002.txt").write_text(""),
        "1 images have no caption, the first is mine/0002.png",
    ),
    "a missing captions file": (f"{COCO}none.json", nothing, "cannot read coco/none.json"),
    "unreadable JSON": (
        f"{COCO}broken.json",
        lambda folder: (folder / "coco" / "broken.json").write_text('{"images": ['),
        "is not readable JSON",
    ),
    "a broken image": ("images=mine output=out", break_image, "mine/0001.png cannot be decoded"),
    "an existing split": (
        "images=mine output=out",
        lambda folder: (folder / "out" / "train").mkdir(parents=True),
        "out/train is there already: delete that folder",
    ),
    "an unknown source": ("source=cocoa output=out", nothing, "did you mean 'coco'?"),
    "an unknown key": ("outptu=out", nothing, "unknown key 'outptu'"),
    "no vocabulary": (
        "images=mine output=out vocabulary=none.json",
        nothing,
        "there is no vocabulary none.json",
    ),
    "an output that is a file": (
        "images=mine output=mine/0001.txt",
        nothing,
        "cannot make the folder output=mine/0001.txt",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_sentence_and_exit_code_2(tmp_path: Path, case: str) -> None:
    words, spoil, message = REFUSED[case]
    prepare(tmp_path)
    spoil(tmp_path)
    refused = shards(tmp_path, *words.split())
    assert refused.returncode == 2, refused.stderr
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("t2i_hpc.shards: ")
    assert message in refused.stderr
    assert not (tmp_path / "out" / "train" / "manifest.json").exists()


def test_help_has_an_example_for_each_source(tmp_path: Path) -> None:
    text = shards(tmp_path, "--help").stdout
    for source in ("coco", "cub", "folder"):
        assert f"python -m t2i_hpc.shards source={source}" in text


def test_the_door_needs_no_torch(tmp_path: Path) -> None:
    make_image_folder(tmp_path / "mine", range(2))
    program = (
        "import sys; from t2i_hpc.shards import DOOR; "
        "code = DOOR.open(['images=mine', 'output=out']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
