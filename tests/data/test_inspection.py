"""Verifying, finding and drawing samples of splits that are there."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.format.tables import save_tables, sha256_of_rows
from t2i_hpc.data.inspection import (
    contact_sheet,
    find_key,
    only_split,
    place_of,
    splits_at,
)
from t2i_hpc.data.verification import verify_split
from tests.support.data import captions_of, draw_image, make_shards
from tests.support.mutations import summed


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("built"), count=12, shard_samples=5)


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def ignore(_: int) -> None:
    pass


def test_whole_splits_are_all_right(built: Path) -> None:
    splits = splits_at(str(built))
    assert [manifest.folder.name for manifest in splits] == ["test", "train"]
    for manifest in splits:
        seen: list[int] = []
        verify_split(manifest, seen.append)
        assert sum(seen) == manifest.sample_count


def test_one_split_may_be_named(built: Path) -> None:
    assert only_split(splits_at(str(built / "train"))).split == "train"
    with pytest.raises(DataError, match=r"holds the splits test, train: name one of them"):
        only_split(splits_at(str(built)))


def overwrite(path: Path, old: bytes, new: bytes, nth: int = 0) -> None:
    """Put `new` where `old` stands for the `nth` time; the size stays."""
    content, at = path.read_bytes(), -1
    for _ in range(nth + 1):
        at = content.index(old, at + 1)
    path.write_bytes(content[:at] + new + content[at + len(new) :])


def break_image(split: Path) -> None:
    overwrite(split / "000001.tar", b"IDAT", b"XXXXXXXX", nth=2)


def break_json(split: Path) -> None:
    overwrite(split / "000002.tar", b'{"captions"', b'["captions"', nth=1)


def change_a_caption(split: Path) -> None:
    overwrite(split / "000000.tar", b"a red circle", b"a bad circle")


def move_an_index_row(split: Path) -> None:
    """Give the split an index whose hash fits and that points beside a member."""
    manifest = Manifest.load(split)
    parts = [np.array(manifest.rows(number)) for number in range(manifest.shard_count)]
    parts[0]["image_offset"][3] += 512
    shards = [
        replace(shard, rows_sha256=sha256_of_rows(rows))
        for shard, rows in zip(manifest.shards(), parts, strict=True)
    ]
    replace(manifest, shards_sha256=save_tables(split, shards, parts)).save()


def misstate_the_smallest(split: Path) -> None:
    overwrite(split / "manifest.json", b'"smallest": 40', b'"smallest": 48')


def empty_the_vocabulary(split: Path) -> None:
    (split.parent / "vocabulary.json").write_text("{}")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "image": (
        break_image,
        r"train/000001\.tar is damaged at its member '000000007-0007_png\.png': .*has changed",
    ),
    "json": (
        break_json,
        r"train/000002\.tar is damaged at its member '000000011-0011_png\.png': sample 11",
    ),
    "caption": (
        change_a_caption,
        r"train/000000\.tar is damaged at its member '000000000-0000_png\.png': .*has changed",
    ),
    "index": (
        move_an_index_row,
        r"train/000000\.tar has its member '000000003-0003_png\.png' elsewhere than indexed",
    ),
    "smallest": (misstate_the_smallest, r"manifest\.json calls 48 px the smallest side, but"),
    "vocabulary": (empty_the_vocabulary, r"vocabulary\.json is not a vocabulary"),
    "header": (
        lambda split: overwrite(split / "000001.tar", b"ustar", b"xxxxx", nth=3),
        r"train/000001\.tar",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_by_shard_and_member(copy: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(copy / "train")
    with pytest.raises(DataError, match=message):
        verify_split(Manifest.load(copy / "train"), ignore)


def test_all_damage_is_listed(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = copy / "train"
    break_image(split)
    change_a_caption(split)
    (split / "000002.tar").unlink()
    empty_the_vocabulary(split)
    (manifest,) = splits_at(str(split), check_tars=False)
    seen: list[int] = []
    with pytest.raises(DataError, match=r"train has 4 problems, listed above; copy"):
        verify_split(manifest, seen.append)
    expected = (
        r"vocabulary\.json is not a vocabulary",
        r"000000\.tar is damaged at its member '000000000-",
        r"000001\.tar is damaged at its member '000000007-",
        r"cannot read .*000002\.tar: No such file",
    )
    assert len(caplog.messages) == len(expected)
    for found, message in zip(caplog.messages, expected, strict=True):
        assert re.search(message, found)
    assert sum(seen) == manifest.sample_count


def test_at_most_twenty_problems_are_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = make_shards(tmp_path, count=25, size=16) / "train"
    for path in split.glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b"IDAT", b"TADI"))
    with pytest.raises(DataError, match=r"more than 20 problems, the first 20 are listed above"):
        verify_split(Manifest.load(split), ignore)
    assert len(caplog.messages) == 20
    assert len(set(caplog.messages)) == 20


def change_padding(split: Path) -> None:
    """Change what belongs to no sample: the time of a member, with the header's sum."""
    path = split / "000001.tar"
    content = path.read_bytes()
    header = content[:136] + b"00000000001\0" + content[148:512]
    path.write_bytes(summed(header) + content[512:])


def test_a_change_outside_of_all_samples_is_found(copy: Path) -> None:
    change_padding(copy / "train")
    with pytest.raises(DataError, match=r"content of .*000001\.tar has changed \(SHA-256 differs"):
        verify_split(Manifest.load(copy / "train"), ignore)


def test_an_index_of_others_is_found(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.save(copy / "train" / "index.npy", np.load(copy / "train" / "index.npy")[::-1])
    with pytest.raises(DataError, match="train has 3 problems"):
        verify_split(Manifest.load(copy / "train"), ignore)
    assert all("is not the index of this manifest" in message for message in caplog.messages)


def test_a_bomb_is_named_by_its_member(copy: Path) -> None:
    split = copy / "train"
    path = split / "000000.tar"
    content = path.read_bytes()
    place = content.index(b"IHDR") + 4
    path.write_bytes(content[:place] + struct.pack(">II", 60_000, 60_000) + content[place + 8 :])
    with pytest.raises(DataError, match=r"000000\.tar, member '000000000-0000_png\.png', claims"):
        verify_split(Manifest.load(split), ignore)


def test_a_sample_and_its_place(built: Path) -> None:
    manifest = Manifest.load(built / "train")
    place = place_of(manifest, 7)
    assert (place.shard.name, place.sample.key) == ("000001.tar", "0007.png")
    assert list(place.sample.captions) == captions_of(7)
    assert np.array_equal(place.image, np.asarray(draw_image(7, 48, 40)))
    stored = place.shard.read_bytes()[place.offset :][: len(place.sample.image)]
    assert stored == place.sample.image
    for number in (-1, 12):
        with pytest.raises(DataError, match=r"its samples are 0 to 11"):
            place_of(manifest, number)


def test_a_key_is_found_in_any_split(built: Path) -> None:
    splits = splits_at(str(built))
    for key, split, number in (("0007.png", "train", 7), ("0014.png", "test", 2)):
        manifest, found = find_key(splits, key)
        assert (manifest.split, found) == (split, number)
    with pytest.raises(DataError, match=r"has the key '0007\.jpg': did you mean '0007\.png'"):
        find_key(splits, "0007.jpg")
    with pytest.raises(DataError, match=r"'!': keys look like '0012\.png' or '0013\.png'"):
        find_key(splits, "!")


def test_an_unreadable_description_is_named(copy: Path) -> None:
    break_json(copy / "train")
    with pytest.raises(DataError, match=r"000002\.tar has no readable description at byte \d+"):
        find_key([Manifest.load(copy / "train")], "0011.png")


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_folders_without_splits(tmp_path: Path, folder: str) -> None:
    with pytest.raises(DataError, match=r"there is no folder|holds no split"):
        splits_at(str(tmp_path / folder))


def test_an_unfinished_build_is_no_split(copy: Path) -> None:
    shutil.copytree(copy / "train", copy / ".train.partial")
    assert [manifest.folder.name for manifest in splits_at(str(copy))] == ["test", "train"]


def test_a_contact_sheet_shows_the_pictures_in_order(built: Path) -> None:
    sheet = contact_sheet(Manifest.load(built / "train"))
    assert sheet.size == (8 * 170 + 10, 2 * 240 + 10)
    for number in range(12):
        row, column = divmod(number, 8)
        middle = (10 + column * 170 + 80, 10 + row * 240 + 80)
        expected = draw_image(number, 48, 40).getpixel((24, 20))
        assert sheet.getpixel(middle) == expected
        below = sheet.crop((middle[0] - 80, middle[1] + 80, middle[0] + 80, middle[1] + 110))
        assert np.asarray(below).min() < 60  # a caption in ink


def test_a_contact_sheet_is_spread_evenly(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, count=120, size=16, shard_samples=100)
    sheet = contact_sheet(Manifest.load(folder / "train"))
    assert sheet.size == (8 * 170 + 10, 8 * 240 + 10)
    last = sheet.getpixel((10 + 7 * 170 + 80, 10 + 7 * 240 + 80))
    assert last == draw_image(118, 24, 16).getpixel((12, 8))
