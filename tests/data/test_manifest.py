"""A split that is damaged is refused at once, with the name of what is damaged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import resource, sha256_of_file
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.format.manifest import MANIFEST, Manifest, Storing
from t2i_hpc.data.format.tables import ROW, SHARD_ROW, Shard, save_tables, sha256_of_rows
from t2i_hpc.data.format.tar_list import TarList
from tests.support.data import make_image_folder, make_shards


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return make_shards(tmp_path, count=6, size=16, shard_samples=4) / "train"


def test_the_manifest_describes_the_files(split: Path) -> None:
    manifest = Manifest.load(split)
    assert manifest.counts.tolist() == [4, 2]
    assert manifest.first.tolist() == [0, 4]
    assert [manifest.shard_of(number) for number in range(6)] == [0, 0, 0, 0, 1, 1]
    assert manifest.sample_count == 6
    assert (manifest.split, manifest.image_format, manifest.smallest) == ("train", "png", 16)
    assert manifest.digest == sha256_of_file(split / "manifest.json")
    assert manifest.bytes == sum(path.stat().st_size for path in split.glob("*.tar"))
    assert [shard.sha256 for shard in manifest.shards()] == [
        sha256_of_file(split / name) for name in ("000000.tar", "000001.tar")
    ]


def test_the_tables_are_mapped_not_loaded(split: Path) -> None:
    manifest = Manifest.load(split)
    for table, kind, size, rows in (
        (manifest.index, ROW, 33, 6),
        (manifest.table, SHARD_ROW, 84, 2),
    ):
        assert isinstance(table, np.memmap)
        assert (table.dtype, kind.itemsize, len(table)) == (kind, size, rows)


def test_a_pickled_manifest_leaves_the_tables_behind(split: Path) -> None:
    manifest = Manifest.load(split)
    assert manifest.counts.sum() == manifest.index.shape[0] == 6
    sent = pickle.dumps(manifest)
    assert len(sent) < 1000
    assert pickle.loads(sent).rows(1)["image_bytes"].all()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1024])


def rewrite(split: Path, text: str) -> None:
    (split / "manifest.json").write_text(text)


def edit(**changes: object) -> Callable[[Path], None]:
    def change(split: Path) -> None:
        path = split / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def edit_table(**changes: int) -> Callable[[Path], None]:
    """Change the second shard's row, with a manifest whose hash fits."""

    def change(split: Path) -> None:
        table = np.load(split / "shards.npy")
        for name, value in changes.items():
            table[1][name] = value
        np.save(split / "shards.npy", table)
        edit(shards_sha256=sha256_of_file(split / "shards.npy"))(split)

    return change


def shuffle_index(split: Path) -> None:
    index = np.load(split / "index.npy")
    np.save(split / "index.npy", index[::-1])


def pickled_index(split: Path) -> None:
    np.save(split / "index.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def cut_index(split: Path) -> None:
    path = split / "index.npy"
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut tar": (
        lambda split: cut(split / "000001.tar"),
        r"000001\.tar has [\d,]+ bytes instead of [\d,]+",
    ),
    "missing tar": (lambda split: (split / "000000.tar").unlink(), r"000000\.tar is missing"),
    "missing manifest": (lambda split: (split / "manifest.json").unlink(), "is no split"),
    "cut manifest": (lambda split: cut(split / "manifest.json"), r"manifest\.json is damaged"),
    "no object": (lambda split: rewrite(split, "[]"), "is damaged"),
    "another format": (edit(format=1), "format 1 instead of 3"),
    "no vocabulary": (edit(vocabulary=3), "3 is no str"),
    "another count": (edit(sample_count=7), "contradicts manifest.json"),
    "no shards": (edit(shard_count=0), "a number below 1"),
    "fewer shards": (edit(shard_count=1), r"\(2,\) rows of .* instead of 1"),
    "other bytes": (edit(bytes=7), "contradicts manifest.json"),
    "a number as text": (edit(size="304"), "'304' is no int"),
    "a text as number": (edit(split=3), "3 is no str"),
    "a deep manifest": (lambda split: rewrite(split, "[" * 10**5), "is damaged"),
    "missing table": (lambda split: (split / "shards.npy").unlink(), r"shards\.npy is missing"),
    "another table": (
        lambda split: np.save(split / "shards.npy", np.zeros(2, SHARD_ROW)),
        "is not the table of this manifest",
    ),
    "an empty shard": (edit_table(count=0), "contradicts"),
    "a gap": (edit_table(first=5), "contradicts"),
    "missing index": (lambda split: (split / "index.npy").unlink(), r"index\.npy cannot be read"),
    "cut index": (cut_index, r"index\.npy"),
    "pickled index": (pickled_index, r"index\.npy cannot be read"),
    "index of others": (
        lambda split: np.save(split / "index.npy", np.zeros(6)),
        "rows of float64",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(split: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    harm(split)
    with pytest.raises(DataError, match=message) as caught:
        Manifest.load(split)
    assert "\n" not in str(caught.value)


def test_rows_of_others_are_found_when_their_shard_is_first_used(split: Path) -> None:
    shuffle_index(split)
    manifest = Manifest.load(split)
    with pytest.raises(DataError, match=r"its rows of 000001\.tar differs"):
        manifest.rows(1)


def test_a_build_records_how_images_are_stored(tmp_path: Path) -> None:
    expected = {
        "jpeg": ("jpeg", 90, "antialiased bilinear"),
        "png": ("png", 0, "antialiased bilinear"),
        "original": ("original", 0, "none"),
    }
    pictures = str(make_image_folder(tmp_path / "pictures", range(3)))
    texts = {}
    for form, storing in expected.items():
        output = str(tmp_path / form)
        config = ShardsConfig(images=pictures, output=output, format=form, workers=0)
        build_split(replace(config, quality=90) if form == "jpeg" else config)
        manifest = Manifest.load(tmp_path / form / "train")
        assert manifest.storing == Storing(*storing)
        texts[form] = manifest.stored
    assert texts == {
        "jpeg": "jpeg, quality 90, shorter side at most 304 px by antialiased bilinear",
        "png": "png, lossless, shorter side at most 304 px by antialiased bilinear",
        "original": "originals; those that were turned or cut are PNG",
    }


def test_a_manifest_of_before_says_unknown(tmp_path: Path) -> None:
    folder = resource("shards_demo") / "test"
    manifest = Manifest.load(folder)
    assert manifest.storing == Storing()
    assert "filter and quality unknown" in manifest.stored
    replace(manifest, folder=tmp_path).save()
    assert (tmp_path / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()


def test_tables_are_written_part_by_part(tmp_path: Path) -> None:
    parts = [np.full(count, count, ROW) for count in (3, 1, 2)]
    shards = [
        Shard(number, len(rows), 10 * number + 9, f"{number}0" * 32, sha256_of_rows(rows))
        for number, rows in enumerate(parts)
    ]
    digest = save_tables(tmp_path, shards, iter(parts))
    manifest = Manifest(tmp_path, "a", "b", 8, 8, "png", 6, 3, 57, digest)
    assert list(manifest.shards()) == shards
    assert [manifest.rows(number).tolist() for number in range(3)] == [
        rows.tolist() for rows in parts
    ]


def test_a_list_of_tars_is_parsed_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, names = tmp_path / "tars.jsonl", [f"{number:05d}.tar" for number in range(200)]
    lines = [json.dumps({"tar": name}) for name in names]
    path.write_text("\n".join([*lines[:70], "", *lines[70:-1], "no JSON"]))
    tars, parsed = TarList(path, 200, "make it again"), list[str]()
    loads = json.loads

    def noted(line: bytes) -> object:
        parsed.append(line.decode())
        return loads(line)

    monkeypatch.setattr(json, "loads", noted)
    assert [tars[number] for number in (0, 69, 70, 130, 130)] == [
        names[n] for n in (0, 69, 70, 130)
    ] + [names[130]]
    assert len(parsed) == 4
    with pytest.raises(DataError, match=r"tars\.jsonl cannot be read .*; make it again"):
        tars[199]
    with pytest.raises(DataError, match="has not one line for each of 199 tars"):
        TarList(path, 199, "")
    with pytest.raises(IndexError):
        tars[200]
