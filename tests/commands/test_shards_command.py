"""The command `python -m t2i_hpc.shards` as a person runs it."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.split import Split
from tests.support.data import (
    captions_of,
    draw_image,
    image_bytes,
    make_coco,
    make_cub,
    make_image_folder,
)


def shards(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command inside `folder`."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-m", "t2i_hpc.shards", *arguments],
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
    ("arguments", "count"),
    [
        ("source=coco images=coco/val2017 captions=coco/captions_val2017.json output=out", 4),
        ("source=cub images=cub/CUB_200_2011 captions=cub/text output=out split=test", 2),
        ("source=folder images=mine output=out shard_samples=2 format=webp", 3),
    ],
)
def test_a_split_is_built(tmp_path: Path, arguments: str, count: int) -> None:
    prepare(tmp_path)
    done = shards(tmp_path, *arguments.split())
    assert done.returncode == 0, done.stderr
    name = "test" if "split=test" in arguments else "train"
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


USAGES = (
    "verify DIR",
    "show DIR key=NAME|number=N [output=PNG]",
    "sheet DIR",
    "merge DIR",
    "vocabulary DIR",
)
COCO = "source=coco images=coco/val2017 output=out captions=coco/"
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no output": ("images=mine", nothing, "output= is missing"),
    "no images": ("output=out", nothing, "images= is missing"),
    "no such folder": ("images=nowhere output=out", nothing, "there is no folder nowhere"),
    "an empty folder": ("images=empty output=out", nothing, "empty has no images"),
    "captions of other images": (
        "source=coco images=empty captions=coco/captions_val2017.json output=out",
        nothing,
        "missing image file: 4",
    ),
    "an image without captions": (
        "images=mine output=out max_rejected=0",
        lambda folder: (folder / "mine" / "0002.txt").write_text(""),
        "1 of 3 samples were rejected, more than the 0 of max_rejected=0 (no caption: 1)",
    ),
    "a missing captions file": (f"{COCO}none.json", nothing, "cannot read coco/none.json"),
    "unreadable JSON": (
        f"{COCO}broken.json",
        lambda folder: (folder / "coco" / "broken.json").write_text('{"images": ['),
        "is not readable JSON",
    ),
    "a broken image": (
        "images=mine output=out max_rejected=0",
        break_image,
        "mine/0001.png cannot be decoded",
    ),
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
    "an unknown command": ("verfy out", nothing, "unknown command 'verfy': did you mean 'verify'?"),
    "no folder to verify": ("verify", nothing, "cannot read the arguments: write verify DIR"),
    "a folder with an equals sign": (
        "verify lr=0.1",
        lambda folder: (folder / "lr=0.1").mkdir(),
        "lr=0.1 holds no split",
    ),
    "two folders": ("verify mine coco", nothing, "write verify DIR"),
    "a folder that is not there": ("verify nowhere", nothing, "there is no folder nowhere"),
    "a folder without splits": ("sheet mine", nothing, "mine holds no split"),
    "an unknown key of a command": ("show mine kye=a", nothing, "unknown key 'kye': write show"),
    "nothing to show": ("show mine", nothing, "show takes either key=NAME or number=N"),
    "two things to show": ("show mine key=a number=2", nothing, "either key=NAME or number=N"),
    "a number of several splits": ("show demo number=3", nothing, "holds the splits test, train"),
    "no whole number": (
        "show mine number=x",
        nothing,
        "number=x is no whole number",
    ),
    "a picture of another kind": ("sheet demo output=a.jpg", nothing, "are written as .png"),
    "a picture that is there": (
        "sheet demo output=mine/0001.png",
        nothing,
        "mine/0001.png is there already: name another output=",
    ),
    "a picture under a file": (
        "show demo key=1f4fd.png output=mine/0001.txt/a.png",
        nothing,
        "cannot write output=mine/0001.txt/a.png",
    ),
    "a share that is none": (
        "images=mine output=out partition=3/2",
        nothing,
        "partition=3/2 is none: write e.g. 3/16, from 1/16 to 16/16",
    ),
    "a share of rejects that is none": (
        "images=mine output=out max_rejected=2",
        nothing,
        "max_rejected=2.0 is too large: at most 1",
    ),
    "nothing to merge": ("merge out/train", nothing, "out/train has no partitions to merge"),
    "merging by a fraction that is none": (
        "merge out/train max_rejected=x",
        nothing,
        "max_rejected=x is no fraction",
    ),
    "no words": ("vocabulary out", nothing, "takes either captions=FILE,FILE,… or from=PICKLE"),
    "words of nothing": ("vocabulary out captions=", nothing, "captions= names no file"),
    "words of a folder without texts": (
        "vocabulary out captions=empty",
        nothing,
        "empty holds no captions",
    ),
    "words of no pickle": (
        "vocabulary out from=mine/0001.png",
        nothing,
        "mine/0001.png, captions and words of this literature, cannot be read as a pickle",
    ),
    "a vocabulary that is there": (
        "vocabulary . captions=mine",
        lambda folder: (folder / "vocabulary.json").touch(),
        "vocabulary.json is there already",
    ),
    "pickles without captions": (
        "source=pickles images=mine output=out",
        nothing,
        "captions= must name a captions.pickle",
    ),
    "a setting of another source": (
        "images=mine output=out image_member=input.jpg",
        nothing,
        "image_member=input.jpg does not belong to source=folder, but to source=webdataset: "
        "leave it",
    ),
    "letters that are none": (
        "vocabulary out captions=mine letters=latin",
        nothing,
        "letters= is ascii or unicode",
    ),
    "tars that are not there": ("source=webdataset images=mine output=out", nothing, "has no .tar"),
    "an output that is a file": (
        "images=mine output=mine/0001.txt",
        nothing,
        "cannot make the folder output=mine/0001.txt",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_sentence_and_exit_code_2(tmp_path: Path, case: str) -> None:
    arguments, spoil, message = REFUSED[case]
    prepare(tmp_path)
    spoil(tmp_path)
    refused = shards(tmp_path, *arguments.split())
    assert refused.returncode == 2, refused.stderr
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("t2i_hpc.shards: ")
    assert message in refused.stderr
    assert not (tmp_path / "out" / "train" / "manifest.json").exists()


def img2dataset_tar(path: Path, first: int, count: int, silent: range) -> None:
    """Write a tar as img2dataset leaves it; captions have line breaks, some are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            text = None if number in silent else f"a picture\nof {captions_of(number)[0]}"
            key = f"{path.stem}{number:04d}"
            described = {"caption": text, "key": key, "status": "success", "exif": "{}"}
            for suffix, content in (
                ("jpg", image_bytes(number, "JPEG", 40, 32)),
                ("txt", (text or "").encode()),
                ("json", json.dumps(described).encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_tars_as_img2dataset_leaves_them(tmp_path: Path) -> None:
    """3 % without caption, one tar cut, one in a folder, one with macOS's leftovers beside it."""
    for place, name in enumerate(["00000.tar", "00001.tar", "more/00002.tar"]):
        img2dataset_tar(
            tmp_path / "tars" / name, 100 * place, 100, range(100 * place, 100 * place + 3)
        )
    cut = tmp_path / "tars" / "00001.tar"
    content = cut.read_bytes()
    cut.write_bytes(content[: content.index(b"000010150.jpg") + 700])
    (tmp_path / "tars" / "00000_stats.json").write_text("{}")
    (tmp_path / "tars" / "._00000.tar").write_bytes(b"\0\5\26\7")
    done = shards(tmp_path, "source=webdataset", "images=tars", "output=out", "size=24")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out/train: 241 samples in 1 shards, "), done.stdout
    assert "; from 3 tars; " in done.stdout
    told = "10 rejected (no caption: 9, damaged tar: 1), see out/train/rejected.jsonl\n"
    assert done.stdout.endswith(told)
    listed = (tmp_path / "out" / "train" / "rejected.jsonl").read_text().split("\n")[:-1]
    rows = [json.loads(line) for line in listed]
    assert sum(row["path"] == "tars/00001.tar" for row in rows) == 4
    assert "50 samples before that are taken" in rows[-4]["reason"] + rows[6]["reason"]
    split = Split.open(DataConfig(path=str(tmp_path / "out")), "train")
    assert split.sample(0).captions == (f"a picture\nof {captions_of(3)[0]}",)
    assert shards(tmp_path, "verify", "out").returncode == 0
    strict = ["source=webdataset", "images=tars", "output=b", "max_rejected=0.01"]
    refused = shards(tmp_path, *strict)
    assert refused.returncode == 2
    assert "10 of 251 samples were rejected, more than the 3 of max_rejected=0.01" in refused.stderr
    assert not (tmp_path / "b" / "train").exists()


def test_looking_at_a_split(tmp_path: Path) -> None:
    prepare(tmp_path)
    build = "source=folder images=mine output=out shard_samples=2 format=png"
    assert shards(tmp_path, *build.split()).returncode == 0
    verified = shards(tmp_path, "verify", "out")
    assert verified.stdout == "out/train: 3 samples in 2 shards: all right\n", verified.stderr
    assert "verify out/train: 3 of 3 samples" in verified.stderr
    by_key = shards(tmp_path, "show", "out", "key=0002.png")
    by_number = shards(tmp_path, "show", "out", "number=2", "output=pictures/two.png")
    assert by_key.returncode == by_number.returncode == 0, by_key.stderr + by_number.stderr
    lines = by_key.stdout.splitlines()
    assert lines[:-1] == by_number.stdout.splitlines()[:-1]
    assert lines[0].split() == ["key", "0002.png"]
    assert [line[9:] for line in lines if line.startswith("caption")] == captions_of(2)
    assert "size     48 x 40 px, png" in lines
    assert re.search(r"at offset [\d,]+ of out/train/000001\.tar$", lines[-2])
    assert lines[-1] == "picture  0002.png"
    drawn = np.asarray(draw_image(2, 48, 40))
    for name in ("0002.png", "pictures/two.png"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), drawn)
    assert shards(tmp_path, "sheet", "out").stdout == "sheet.png\n"
    assert Image.open(tmp_path / "sheet.png").size == (3 * 170 + 10, 240 + 10)


def test_a_damaged_split_is_named_with_its_member(tmp_path: Path) -> None:
    prepare(tmp_path)
    assert shards(tmp_path, "images=mine", "output=out", "format=png").returncode == 0
    tar = tmp_path / "out" / "train" / "000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"IDAX", 1))
    refused = shards(tmp_path, "verify", "out")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1].startswith(
        "t2i_hpc.shards: out/train/000000.tar is damaged at its member '000000000-0000_png.png': "
    )


def test_all_problems_of_a_split_are_named(tmp_path: Path) -> None:
    prepare(tmp_path)
    arguments = ["images=mine", "output=out", "format=png", "shard_samples=1"]
    assert shards(tmp_path, *arguments).returncode == 0
    for number in (0, 2):
        (tmp_path / "out" / "train" / f"{number:06d}.tar").unlink()
    refused = shards(tmp_path, "verify", "out")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "out/train/000000.tar" in refused.stderr
    assert "out/train/000002.tar" in refused.stderr
    assert "out/train has 2 problems, listed above" in refused.stderr.splitlines()[-1]


def test_parts_are_built_and_merged(tmp_path: Path) -> None:
    prepare(tmp_path)
    build = ["images=mine", "output=out", "shard_samples=1"]
    first = shards(tmp_path, *build, "partition=1/2")
    assert first.stdout == (
        "out/train: partition 1/2 is made, 1 shards; after all of them: "
        "python -m t2i_hpc.shards merge out/train\n"
    ), first.stderr
    refused = shards(tmp_path, "merge", "out/train")
    assert refused.returncode == 2
    assert refused.stderr.endswith("the first is 000001.tar: build partition=2/2 of it\n")
    assert shards(tmp_path, *build, "partition=2/2").returncode == 0
    merged = shards(tmp_path, "merge", "out/train/")
    assert merged.stdout.startswith("out/train: 3 samples in 3 shards, "), merged.stderr
    assert shards(tmp_path, "verify", "out").returncode == 0


def test_an_interrupted_build_resumes(tmp_path: Path) -> None:
    prepare(tmp_path)
    break_image(tmp_path)
    build = ["images=mine", "output=out", "shard_samples=1"]
    refused = shards(tmp_path, *build, "max_rejected=0")
    assert refused.returncode == 2
    done = shards(tmp_path, *build, "max_rejected=0.4", "size=16")
    assert "starting over: out/.train.partial is of other settings" in done.stderr
    assert done.stdout.endswith("cannot be decoded: 1), see out/train/rejected.jsonl\n")


def test_vocabularies_are_made_and_imported(tmp_path: Path) -> None:
    prepare(tmp_path)
    captions = "captions=coco/captions_val2017.json,mine,cub/text"
    made = shards(tmp_path, "vocabulary", "out", captions)
    words = json.loads((tmp_path / "out" / "vocabulary.json").read_text())["words"]
    assert made.stdout == f"out/vocabulary.json: {len(words)} words\n", made.stderr
    content = [[[1]], [[1]], {0: "<end>", 1: "bird"}, {"<end>": 0, "bird": 1}]
    (tmp_path / "captions.pickle").write_bytes(pickle.dumps(content, 2))
    imported = shards(tmp_path, "vocabulary", "birds", "from=captions.pickle")
    assert imported.stdout == "birds/vocabulary.json: 2 words\n", imported.stderr


def test_help_that_nobody_reads_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "t2i_hpc.shards", "--help"]
    root = Path(__file__).parents[2]
    with os.fdopen(writer, "wb") as pipe:
        piped = subprocess.run(
            arguments, cwd=root, stdout=pipe, stderr=subprocess.PIPE, check=False
        )
    assert (piped.returncode, piped.stderr) == (0, b"")


def test_help_names_the_commands(tmp_path: Path) -> None:
    for arguments in (["--help"], ["show", "--help"], ["verify", "-h"]):
        text = shards(tmp_path, *arguments).stdout
        for usage in USAGES:
            assert f"\n  {usage}" in text


def test_help_has_an_example_for_each_source(tmp_path: Path) -> None:
    text = shards(tmp_path, "--help").stdout
    for source in ("coco", "cub", "folder", "webdataset", "pickles"):
        assert f"python -m t2i_hpc.shards source={source}" in text


def test_looking_at_shards_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from t2i_hpc.shards import COMMAND; "
        "code = COMMAND.main(['verify', 'demo']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
