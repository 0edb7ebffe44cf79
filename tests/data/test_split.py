"""Random access to samples: in this process, in forked ones, after pickling, under damage."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
from collections import Counter
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.sampler import RankSlice, Sampler
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import indexed_loader
from t2i_hpc.data.verification import verify_split
from tests.support.data import captions_of, draw_image, make_shards, vouch


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("split"), count=24, size=24, shard_samples=5)


@pytest.fixture
def split(shards: Path) -> Split:
    return Split.open(DataConfig(path=str(shards)), "train")


def test_every_sample_is_found(split: Split) -> None:
    assert split.count == 24
    for number in range(24):
        sample = split.sample(number)
        assert sample.key == f"{number:04d}.png"
        assert list(sample.captions) == captions_of(number)
        assert sample.image_format == "png"
        assert np.array_equal(split.image(number), np.asarray(draw_image(number, 32, 24)))


@pytest.mark.parametrize("number", [-1, 24])
def test_there_are_no_other_samples(split: Split, number: int) -> None:
    with pytest.raises(IndexError):
        split.sample(number)


def tars_among(calls: list[object]) -> Counter[str]:
    return Counter(Path(str(name)).name for name in calls if str(name).endswith(".tar"))


def noted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """Note the first argument of each call of the system."""
    calls: list[object] = []
    original = getattr(os, name)

    def noting(*arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments[0])
        return original(*arguments, **keywords)

    monkeypatch.setattr(os, name, noting)
    return calls


@pytest.mark.parametrize(("window", "allowed", "opens"), [(5, 1024, 5), (1, 1024, 24), (5, 4, 24)])
def test_as_many_tars_stay_open_as_a_window_wants_and_the_process_may(
    shards: Path, monkeypatch: pytest.MonkeyPatch, window: int, allowed: int, opens: int
) -> None:
    monkeypatch.setattr("t2i_hpc.data.tar_reader.OPEN_FILES", 1)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    split = Split.open(DataConfig(path=str(shards), shuffle_window=window), "train")
    opened = noted(monkeypatch, "open")
    for number in range(24):
        split.sample(number * 5 % 24)  # each from another shard than the two before
    assert tars_among(opened).total() == opens
    assert set(tars_among(opened)) == {f"{number:06d}.tar" for number in range(5)}


def test_rows_in_use_are_kept(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_hpc.data.tar_reader.OPEN_FILES", 1)
    split = Split.open(DataConfig(path=str(shards), shuffle_window=1), "train")
    hashed: list[int] = []
    rows = Manifest.rows

    def hashing(manifest: Manifest, shard: int) -> Any:
        hashed.append(shard)
        return rows(manifest, shard)

    monkeypatch.setattr(Manifest, "rows", hashing)
    for number in (0, 5, 0, 10, 0, 15, 0, 20, 0):  # two shards' rows are kept
        split.sample(number)
    assert hashed == [0, 1, 2, 3, 4]


def test_opening_a_split_looks_at_each_tar_once_and_only_where_asked(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = DataConfig(path=str(shards)), noted(monkeypatch, "stat")
    Split.open(config, "train", check_tars=False)
    assert not tars_among(asked)
    Split.open(config, "train")
    assert tars_among(asked) == {f"{number:06d}.tar": 1 for number in range(5)}


def test_open_files_are_bounded(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_hpc.data.tar_reader.OPEN_FILES", 1)
    split = Split.open(DataConfig(path=str(shards), shuffle_window=1), "train")
    before = len(list(Path("/proc/self/fd").iterdir()))
    keys = [split.sample(number).key for number in (0, 23, 6, 12, 1, 22, 18, 0)]
    assert keys[-1] == keys[0] == "0000.png"
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    del split


def read_in_child(split: Split, sender: Connection) -> None:
    sender.send([split.sample(number) for number in range(split.count)])
    sender.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_read_the_same(split: Split, method: str) -> None:
    expected = [split.sample(number) for number in range(split.count)]  # opens all files
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe()
    child = context.Process(target=read_in_child, args=(split, sender))  # type: ignore[attr-defined]
    child.start()
    found = receiver.recv()
    child.join()
    assert found == expected
    assert split.sample(3) == expected[3]  # the child closed nothing of ours


def test_a_pickled_split_carries_no_data(split: Split) -> None:
    split.sample(0)
    content = pickle.dumps(split)
    assert len(content) < 10_000
    copy: Split = pickle.loads(content)
    assert copy.sample(7) == split.sample(7)


def test_evaluation_images_are_scaled_and_cut_in_the_middle(split: Split) -> None:
    images = split.evaluation_images([5, 0, 5], 16)
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert torch.equal(images[0], images[2])
    scaled = draw_image(0, 32, 24).resize((21, 16), Image.Resampling.BILINEAR)
    expected = np.asarray(scaled)[:, 2:18].transpose(2, 0, 1)
    assert np.array_equal(images[1].numpy(), expected)
    assert split.evaluation_images([], 16).shape == (0, 3, 16, 16)


def test_captions_of_an_evaluation(split: Split) -> None:
    drawn = [split.caption(number, 1) for number in range(2400)]
    assert [index for index, _ in drawn] == [number % 24 for number in range(2400)]
    assert drawn[100] == split.caption(100, 1)
    counts = Counter(captions_of(index).index(text) for index, text in drawn)
    assert sorted(counts) == [0, 1, 2]
    assert min(counts.values()) > 700  # 800 expected, standard deviation 23
    assert drawn != [split.caption(number, 2) for number in range(2400)]


@pytest.mark.parametrize(
    ("path", "split", "message"),
    [
        ("", "train", r"data\.path= is missing"),
        ("nowhere", "train", "no folder nowhere"),
        (None, "trian", r"no split 'trian': did you mean 'train'\?"),
        (None, "xyz", r"no split 'xyz': build it with .* split=xyz, or name another .*; offered:"),
    ],
)
def test_wrong_names_are_refused(shards: Path, path: str | None, split: str, message: str) -> None:
    config = DataConfig(path=str(shards) if path is None else path)
    with pytest.raises(DataError, match=message):
        Split.open(config, split)


def test_an_empty_folder_has_no_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"build it with t2i_hpc\.shards"):
        Split.open(DataConfig(path=str(tmp_path)), "train")


def damaged(tmp_path: Path, find: bytes, replace: bytes) -> Split:
    """Change some bytes of the first tar, and let the manifest vouch for them."""
    shards = make_shards(tmp_path, count=4, size=16)
    change(shards / "train" / "000000.tar", find, replace)
    vouch(shards / "train")
    return Split.open(DataConfig(path=str(shards)), "train")


def change(path: Path, find: bytes, replace: bytes) -> None:
    content = path.read_bytes()
    assert find in content
    path.write_bytes(content.replace(find, replace, 1))


def test_bytes_that_changed_since_the_manifest_are_named(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, count=4, size=16)
    split = Split.open(DataConfig(path=str(shards)), "train")
    change(shards / "train" / "000000.tar", b"a red circle", b"a bad circle")
    assert split.sample(1).key == "0001.png"
    with pytest.raises(DataError, match=r"sample 0 in .*train/000000\.tar has changed since"):
        split.sample(0)


@pytest.mark.parametrize(
    ("find", "replace"),
    [
        (b'{"captions"', b'["captions"'),
        (b'"captions": [', b'"captiony": ['),
        (b'"class": 0', b'"class": x'),
    ],
)
def test_a_damaged_description_is_named(tmp_path: Path, find: bytes, replace: bytes) -> None:
    split = damaged(tmp_path, find, replace)
    with pytest.raises(DataError, match=r"sample 0 in .*train/000000\.tar has an unreadable des"):
        split.sample(0)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    split = damaged(tmp_path, b"IDAT", b"JUNK")
    with pytest.raises(DataError, match=r"0000\.png \(sample 0 in .*train/000000\.tar\) cannot be"):
        split.image(0)


def test_a_tar_cut_in_use_is_named(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, count=4, size=16)
    split = Split.open(DataConfig(path=str(shards), retry_seconds=0), "train")
    split.sample(0)
    os.truncate(shards / "train" / "000000.tar", 700)
    with pytest.raises(DataError, match=r"cannot read .*000000\.tar .*instead of .*: cut"):
        split.sample(3)


def test_a_tar_removed_in_use_is_named(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, count=4, size=16)
    split = Split.open(DataConfig(path=str(shards), retry_seconds=0), "train")
    (shards / "train" / "000000.tar").unlink()
    with pytest.raises(DataError, match=r"cannot read .*000000\.tar \(there is no such file"):
        split.sample(0)


def test_another_vocabulary_than_the_splits_own_is_refused(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, count=4, size=16)
    path = shards / "vocabulary.json"
    words = Vocabulary.load(path).words
    Vocabulary([words[0], *reversed(words[1:])]).save(path)
    config = DataConfig(path=str(shards))
    with pytest.raises(DataError, match=r"vocabulary\.json is not the vocabulary that the split"):
        Split.open(config, "train")
    with pytest.raises(DataError, match=r"vocabulary\.json is not the vocabulary that the split"):
        verify_split(Manifest.load(shards / "train"), lambda _: None)


def test_a_split_of_format_2_is_read_in_its_order(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, count=12, size=16, shard_samples=2)
    manifest = Manifest.load(shards / "train")
    assert (manifest.format, manifest.order) == (3, 2)
    replace(manifest, format=2, vocabulary="").save()
    before = Split.open(DataConfig(path=str(shards)), "train").manifest
    assert (before.format, before.order, before.vocabulary) == (2, 1, "")
    assert "vocabulary" not in json.loads((shards / "train" / "manifest.json").read_text())
    config = DataConfig(path=str(shards), shuffle_window=1, resize_ratio=1.0, workers=0)
    batch = next(
        indexed_loader(config, Split.open(config, "train"), 16, 1, RankSlice(12)).batches(0)
    )
    places = Sampler(manifest.counts, 1, 1, order=1).samples(range(12))
    assert list(batch.keys) == [f"{place:04d}.png" for place in places]
