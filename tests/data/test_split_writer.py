"""Building splits: what is stored, that it is the same each time, and who may write where."""

from __future__ import annotations

import json
import multiprocessing
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build import split_writer as writer
from t2i_hpc.data.build import workspace
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.images import encode
from t2i_hpc.data.split import Split
from t2i_hpc.data.verification import verify_split
from tests.support.data import (
    captions_of,
    draw_image,
    image_bytes,
    make_coco,
    make_cub,
    make_image_folder,
)


def folder_config(tmp_path: Path, count: int = 7, size: int = 24) -> ShardsConfig:
    images = make_image_folder(tmp_path / "in", range(count))
    return ShardsConfig(
        images=str(images), output=str(tmp_path / "out"), size=size, shard_samples=3, format="png"
    )


def opened(config: ShardsConfig) -> Split:
    return Split.open(DataConfig(path=config.output), config.split)


def test_what_a_split_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder_config(tmp_path)
    manifest = build_split(config).manifest
    assert manifest.counts.tolist() == [3, 3, 1]
    assert (manifest.sample_count, manifest.size, manifest.smallest) == (7, 24, 24)
    assert "folder/train: 7 of 7 images" in capsys.readouterr().err
    verify_split(manifest, lambda _: None)
    split = opened(config)
    texts = [text for number in range(7) for text in captions_of(number)]
    assert split.vocabulary.words == Vocabulary.from_captions(texts).words
    for number in range(7):
        sample = split.sample(number)
        assert (sample.key, sample.class_id) == (f"{number:04d}.png", number % 3)
        assert list(sample.captions) == captions_of(number)
        scaled = draw_image(number, 48, 40).resize((28, 24), Image.Resampling.BILINEAR)
        assert np.array_equal(split.image(number), np.asarray(scaled))


def test_members_are_named_for_webdataset(tmp_path: Path) -> None:
    images, captions = make_cub(tmp_path / "in")
    config = ShardsConfig(
        source="cub", images=str(images), captions=str(captions), output=str(tmp_path / "out")
    )
    manifest = build_split(config).manifest
    with tarfile.open(manifest.folder / "000000.tar") as tar:
        names = tar.getnames()
        description = json.loads(tar.extractfile(names[1]).read())  # type: ignore[union-attr]
    assert names[0] == "000000000-002_Laysan_Albatross_Laysan_Albatross_0002.jpg"
    assert names[1] == "000000000-002_Laysan_Albatross_Laysan_Albatross_0002.json"
    assert description["key"] == "002.Laysan_Albatross/Laysan_Albatross_0002"
    assert (description["width"], description["height"]) == (44, 44)  # 2 * int(0.75 * 30)


def test_coco_end_to_end(tmp_path: Path) -> None:
    images, captions = make_coco(tmp_path / "in", 5)
    config = ShardsConfig(
        source="coco", images=str(images), captions=str(captions), output=str(tmp_path / "out")
    )
    manifest = build_split(config).manifest
    assert (manifest.name, manifest.sample_count, manifest.smallest) == ("coco", 5, 48)
    image = opened(config).image(3).astype(int)
    assert image.shape == (48, 60, 3)  # smaller than `size`: kept
    assert np.abs(image - np.asarray(draw_image(3, 60, 48))).mean() < 8


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_a_rebuild_is_bit_identical(tmp_path: Path, form: str) -> None:
    first = replace(folder_config(tmp_path), format=form)
    second = replace(first, output=str(tmp_path / "again"))
    digests = [build_split(config).manifest.digest for config in (first, second)]
    assert digests[0] == digests[1]
    files = sorted(path for path in Path(first.output).rglob("*") if path.is_file())
    assert len(files) == 3 + 3 + 1
    for path in files:
        twin = Path(second.output) / path.relative_to(first.output)
        assert path.read_bytes() == twin.read_bytes()


def test_other_pixels_another_digest(tmp_path: Path) -> None:
    config = folder_config(tmp_path)
    first = build_split(config).manifest.digest
    draw_image(99, 48, 40).save(Path(config.images) / "0004.png")
    assert build_split(replace(config, output=str(tmp_path / "b"))).manifest.digest != first


def test_an_existing_split_is_never_touched(tmp_path: Path) -> None:
    config = folder_config(tmp_path)
    manifest = build_split(config).manifest
    with pytest.raises(DataError, match="out/train is there already: delete"):
        build_split(replace(config, images="nowhere"))  # before anything is read
    verify_split(Manifest.load(manifest.folder), lambda _: None)


def test_a_limit_takes_the_first_samples_and_all_words(tmp_path: Path) -> None:
    config = replace(folder_config(tmp_path), limit=4)
    assert build_split(config).manifest.counts.tolist() == [3, 1]
    assert "purple" in opened(config).vocabulary.words  # of image 5


def test_a_second_split_keeps_the_vocabulary(tmp_path: Path) -> None:
    config = folder_config(tmp_path)
    build_split(config)
    before = (tmp_path / "out" / "vocabulary.json").read_bytes()
    build_split(replace(config, split="test", limit=2))
    assert (tmp_path / "out" / "vocabulary.json").read_bytes() == before


def test_a_named_vocabulary_is_copied(tmp_path: Path) -> None:
    texts = [" ".join(captions_of(number)) for number in range(9, -1, -1)]
    Vocabulary.from_captions(texts).save(tmp_path / "mine.json")
    config = replace(folder_config(tmp_path), vocabulary=str(tmp_path / "mine.json"))
    build_split(config)
    assert opened(config).vocabulary.sha256 == Vocabulary.load(tmp_path / "mine.json").sha256
    Vocabulary.from_captions([*texts, "new"]).save(tmp_path / "mine.json")
    with pytest.raises(DataError, match="share one vocabulary"):
        build_split(replace(config, split="test"))


def test_a_vocabulary_of_other_captions_is_refused(tmp_path: Path) -> None:
    Vocabulary.from_captions(["ein roter Kreis"]).save(tmp_path / "mine.json")
    config = replace(folder_config(tmp_path), vocabulary=str(tmp_path / "mine.json"))
    with pytest.raises(DataError, match=r"words of the captions are not in .*mine\.json"):
        build_split(config)


CUT = image_bytes(5)[:60]
STRIP = encode(np.zeros((3, 2000, 3), dtype=np.uint8), "png", 0)
BAD = pytest.mark.parametrize(
    ("content", "reason"),
    [(CUT, r"in/0005\.png cannot be decoded"), (STRIP, r"in/0005\.png is a strip of 3 by 2000")],
    ids=["cut", "strip"],
)


def with_bad_image(tmp_path: Path, content: bytes) -> ShardsConfig:
    config = folder_config(tmp_path)
    (Path(config.images) / "0005.png").write_bytes(content)
    return config


@BAD
def test_one_bad_image_of_a_small_folder_is_left_out_and_listed(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    built = build_split(with_bad_image(tmp_path, content))
    assert (built.rejected, built.manifest.sample_count) == (1, 6)
    listed = built.manifest.folder / "rejected.jsonl"
    assert re.search(reason, json.loads(listed.read_text())["reason"])
    assert re.search(rf"1 rejected \(.*\), see {listed}$", str(built))


@BAD
def test_a_bad_image_is_named_and_no_split_is_left_where_none_may_be_rejected(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    config = replace(with_bad_image(tmp_path, content), max_rejected=0.0)
    with pytest.raises(DataError, match=rf"1 of 7 samples were rejected, .*{reason}"):
        build_split(config)
    assert [path.name for path in Path(config.output).iterdir()] == [".train.partial"]


def test_photographs_are_stored_upright(tmp_path: Path) -> None:
    config = folder_config(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = Path(config.images) / "0001.png"
    draw_image(1, 30, 20).save(path, exif=exif)
    build_split(config)
    assert opened(config).image(1).shape == (30, 20, 3)


def test_a_second_build_in_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder_config(tmp_path)
    with another_build(config):
        monkeypatch.setattr(workspace, "LOCK_SECONDS", 0.0)
        with pytest.raises(DataError, match="out/train is being built already: wait"):
            build_split(config)
        assert not Path(config.output, "train").exists()
    build_split(config)


@contextmanager
def another_build(config: ShardsConfig) -> Iterator[None]:
    """Let another process build the same split for as long as the block lasts."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def stay(*_: object) -> None:
        theirs.send("building")
        theirs.recv()

    process = context.Process(target=build_split, args=(config,))
    with patch.object(writer, "_make", stay):
        process.start()
    try:
        assert ours.recv() == "building"
        yield
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("split", ["", "a/b", "..", "a b"])
def test_a_split_must_be_a_plain_name(tmp_path: Path, split: str) -> None:
    with pytest.raises(DataError, match="is no folder name"):
        build_split(replace(folder_config(tmp_path), split=split))
