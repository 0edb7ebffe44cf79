"""The command `generate` with `images_per_caption`: files that anybody may begin or finish."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import GenerateConfig
from t2i_hpc.generate import COMMAND
from t2i_hpc.sampling.bulk import BulkJob, generate_files
from t2i_hpc.sampling.caption_list import read_caption_list
from tests.launching.test_plans import plan

CAPTIONS = ["a red circle", "", "one square", "a zeppelin circle", "qwertz"]
KEYS = ["000000", "000002", "000003", "000004"]  # the empty one keeps its place


@pytest.fixture(scope="module")
def words(made: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    file = tmp_path_factory.mktemp("captions") / "captions.txt"
    file.write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
    more = ("images_per_caption=3", "batch_size=4", "seed=5", "device=cpu", "threads=1")
    return [f"run={made}", f"captions_file={file}", *more]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All images by one process."""
    output = tmp_path_factory.mktemp("whole") / "images"
    assert COMMAND.main([*words, f"output={output}"]) == 0
    return output


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_image_has_a_file_and_a_row(words: list[str], whole: Path) -> None:
    rows = read_json_lines(whole / "index.jsonl")
    assert [(row["key"], row["image"]) for row in rows] == [(k, j) for k in KEYS for j in range(3)]
    assert {row["seed"] for row in rows} == {5}
    assert rows[6]["caption"] == CAPTIONS[3]
    assert rows[6]["unknown"] == ["zeppelin"]
    files = sorted(path.name for path in whole.glob("*.png"))
    assert (
        files
        == [row["file"] for row in rows]
        == [f"{k}-{j:04d}.png" for k in KEYS for j in range(3)]
    )
    with Image.open(whole / files[0]) as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
    assert len({(whole / name).read_bytes() for name in files}) == len(files)
    request = json.loads((whole / "request.json").read_text())
    assert (request["captions"], request["images_per_caption"]) == (4, 3)


def test_any_shards_and_any_end_make_the_same_files(
    words: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "images"
    pieces = [*words, f"output={output}", "shards=2"]
    assert COMMAND.main([*pieces, "shard=1"]) == 0
    assert "of 12 images are still missing" in capsys.readouterr().err
    assert not (output / "index.jsonl").exists()
    (output / "000003-0002.png").unlink()
    (output / "000004-0000.png").write_bytes(b"")  # as a power cut leaves a file
    assert COMMAND.main([*pieces, "shard=0"]) == 0
    kept = (output / "000000-0000.png").stat().st_mtime_ns
    assert COMMAND.main([*words, f"output={output}"]) == 0  # by one process now
    assert content(output) == content(whole)
    assert (output / "000000-0000.png").stat().st_mtime_ns == kept


def test_any_world_makes_the_same_files(words: list[str], whole: Path, tmp_path: Path) -> None:
    config = compose_config("generate", [*words, f"output={tmp_path}"], GenerateConfig)
    for rank in (0, 2, 1, 0):  # the first rank ends when the others have
        generate_files(config, BulkJob.of(config), torch.device("cpu"), rank=rank, ranks=3)
    assert content(tmp_path) == content(whole)


def test_what_captions_lack_is_counted(
    words: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND.main([*words, f"output={whole}"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "1 of 5 captions are empty: left out",
        "1 of 5 captions have no known word, and their images none to show: qwertz",
        "2 of 5 captions have words that are not in the vocabulary and are left out: "
        "zeppelin, qwertz",
    ]


def test_an_image_depends_on_its_key_not_on_its_place(
    made: Path, whole: Path, tmp_path: Path
) -> None:
    keyed = tmp_path / "captions.json"
    entries = [{"key": key, "caption": CAPTIONS[int(key)]} for key in reversed(KEYS)]
    keyed.write_text(json.dumps(entries))
    words = [f"run={made}", f"captions_file={keyed}", "images_per_caption=1", "seed=5"]
    assert COMMAND.main([*words, "device=cpu", f"output={tmp_path / 'images'}"]) == 0
    for key in KEYS:
        images = [
            np.asarray(Image.open(folder / f"{key}-0000.png")).astype(int)
            for folder in (whole, tmp_path / "images")
        ]
        assert np.abs(images[0] - images[1]).max() <= 1  # in another batch


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '["x", "y"]', [("000000", "x"), ("000001", "y")]),
        ("a.json", '{"k": "x", "l": ["y", "z"]}', [("k", "x"), ("l.0", "y"), ("l.1", "z")]),
        ("a.json", '{"annotations": [{"id": 7, "image_id": 1, "caption": "x"}]}', [("7", "x")]),
        (
            "a.jsonl",
            '{"key": "a/b", "text": "x"}\n{"caption": "y"}\n',
            [("a/b", "x"), ("000001", "y")],
        ),
        (
            "a.csv",
            'file_name,caption\na.jpg,"x, y"\na.jpg,z\n',
            [("a.jpg.0", "x, y"), ("a.jpg.1", "z")],
        ),
        ("a.csv", "Caption\nx\ny\n", [("000000", "x"), ("000001", "y")]),
        ("a.tsv", "id\tcaption\n4\tx\n", [("4", "x")]),
        ("a.txt", "x {y}\r\n\nz\n\n", [("000000", "x {y}"), ("000002", "z")]),
    ],
)
def test_forms_of_a_captions_file(
    name: str, text: str, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(text.encode())
    found = read_caption_list(str(tmp_path / name))
    assert [(entry.key, entry.caption) for entry in found.entries] == expected


def test_keys_become_names_of_files(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"../a": "a circle", ".b": "a circle", "a%2F": "a circle"}))
    words = [f"run={made}", f"captions_file={file}", "images_per_caption=1"]
    request = BulkJob.of(compose_config("generate", words, GenerateConfig)).request
    names = [request.name(number) for number in range(3)]
    assert names == ["%2E.%2Fa-0000.png", "%2Eb-0000.png", "a%252F-0000.png"]


def test_shards_become_an_array_of_those_that_are_missing(
    words: list[str], whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "images"
    asked = (*words, f"output={output}", "shards=3")
    made = plan("generate", *asked)
    assert [work.arguments[-2:] for work in made.works] == [
        ("checkpoint=200", f"shard={shard}") for shard in range(3)
    ]
    assert {work.folder for work in made.works} == {output}
    shutil.copytree(whole, output)
    (output / "000004-0002.png").unlink()
    assert [work.arguments[-1] for work in plan("generate", *asked).works] == ["shard=2"]
    assert len(plan("generate", *asked, gpus_per_node=2).works) == 1  # its ranks share all of it
    assert len(plan("generate", words[0]).works) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["seed=6"], "holds images of another request (seed)"),
        (["columns=3"], "columns= belongs to a grid"),
        (["shards=2", "shard=2"], "shard=2 does not exist"),
        (["captions_file="], "needs captions"),
        (["captions_file=/nowhere.csv"], "captions_file=/nowhere.csv cannot be read"),
    ],
)
def test_refusals(
    words: list[str], whole: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND.main([*words, f"output={whole}", *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_other_files_are_left_alone(
    made: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.png").write_bytes(b"precious")
    assert COMMAND.main([*words, f"output={tmp_path}"]) == 2
    assert "holds PNG files of something else" in capsys.readouterr().err
    assert COMMAND.main([f"run={made}", "captions=[a circle]", "shards=2"]) == 2
    assert "belongs to images_per_caption=" in capsys.readouterr().err
    assert COMMAND.main([f"run={made}", "captions=[qwertz]", "images_per_caption=1"]) == 2
    assert "no word of any caption" in capsys.readouterr().err
