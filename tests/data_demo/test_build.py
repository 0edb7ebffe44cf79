"""The recipe: the same packages give the same bytes, and what is left out stays out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.demo.build import SPLITS, build, main, on_white, read_metadata, write_folders
from shards.demo.emoji import Emoji, read_emoji
from shards.demo.packages import NAMES, Package, unpacked
from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_file
from tests.data_demo.packages import TAKEN, disc, make_packages


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def both_splits(emoji: list[Emoji]) -> list[Emoji]:
    """Add emoji under other codes until each split has some (six are too few for 12 %)."""
    changed = [
        Emoji(f"{one.code}-{n}", one.label, one.subgroup, one.class_id, one.tags, one.picture)
        for n in range(10)
        for one in emoji
    ]
    assert {one.split for one in changed} == set(SPLITS)
    return changed


def test_the_same_packages_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "shards.demo.build.read_emoji", lambda *where: both_splits(read_emoji(*where))
    )
    for name in ("a", "b"):
        pictures, names = make_packages(tmp_path / f"packages {name}")
        counts = build(pictures, names, tmp_path / name)
        assert sum(counts.values()) == 10 * len(TAKEN)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second
    assert {"vocabulary.json", "train/000000.tar", "test/000000.tar"} <= first.keys()


def test_flags_skin_tones_keycaps_and_gender_variants_are_left_out(tmp_path: Path) -> None:
    assert {one.code for one in read_emoji(*make_packages(tmp_path))} == TAKEN


def test_the_order_and_split_follow_from_the_code_alone(tmp_path: Path) -> None:
    emoji = read_emoji(*make_packages(tmp_path))
    again = read_emoji(tmp_path / "pictures", tmp_path / "names")
    assert [(one.code, one.split) for one in emoji] == [(one.code, one.split) for one in again]
    assert {one.code: one.split for one in emoji}["1f34e"] == "test"


def test_folders_have_pictures_on_white_and_five_captions(tmp_path: Path) -> None:
    emoji = read_emoji(*make_packages(tmp_path))
    folders = write_folders(emoji, tmp_path)
    rows = [row for split in SPLITS for row in read_metadata(folders[split])]
    apple = next(row for row in rows if row["file_name"] == "1f34e.png")
    assert apple["captions"][0] == "a 3d emoji of a red apple, a fruit on a white background"
    assert apple["captions"][1] == "a red apple in red on a white background"
    assert apple["class"] == 42
    assert all(len(set(row["captions"])) == 5 for row in rows)


def test_a_picture_that_is_not_square_is_padded_with_white() -> None:
    picture = np.asarray(on_white(disc((10, 20, 30), (96, 104))))
    assert picture.shape == (104, 104, 3)
    assert (picture[:, :4] == 255).all()
    assert (picture[:, -4:] == 255).all()
    assert picture[52, 52].tolist() == [10, 20, 30]


def test_another_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAMES.file).write_bytes(b"something else")
    with pytest.raises(DataError, match="is not the archive of emojibase-data@17"):
        unpacked(NAMES, tmp_path, tmp_path)


def test_an_archive_with_the_right_checksum_is_unpacked(tmp_path: Path) -> None:
    make_packages(tmp_path)
    archive = tmp_path / "names.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "names", arcname="package")
    package = Package("names", "1.0.0", archive.name, sha256_of_file(archive))
    folder = unpacked(package, tmp_path, tmp_path / "work")
    assert json.loads((folder / "en" / "data.json").read_text())[0]["label"] == "red apple"


def test_a_missing_archive_leaves_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--packages", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "there is no" in message
    assert message.count("\n") == 1


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not the package emojibase-data"):
        read_emoji(tmp_path, tmp_path)
