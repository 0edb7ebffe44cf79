"""Other tools read our shards, and we read the shards of webdataset's own writer."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.format.tars import members_of
from t2i_hpc.data.images import decode
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import indexed_loader
from t2i_hpc.data.verification import verify_split
from tests.support.data import captions_of, image_bytes, make_shards

COUNT = 13


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("built"), count=COUNT, size=32, shard_samples=5)


def pipeline(split: Path) -> webdataset.WebDataset:
    urls = [str(path) for path in sorted(split.glob("*.tar"))]
    assert len(urls) == 3
    return webdataset.WebDataset(urls, shardshuffle=False)


def test_webdataset_gives_the_same_bytes(built: Path) -> None:
    split = Split.open(DataConfig(path=str(built)), "train")
    found = list(pipeline(built / "train"))
    assert len(found) == COUNT
    for number, sample in enumerate(found):
        ours, text = split.sample(number), json.loads(sample["json"])
        assert sample["png"] == ours.image
        assert (text["key"], tuple(text["captions"])) == (ours.key, ours.captions)
        assert text["class"] == ours.class_id


def test_webdataset_decodes_the_same_samples(built: Path) -> None:
    split = Split.open(DataConfig(path=str(built)), "train")
    found = list(pipeline(built / "train").decode("pil").to_tuple("png", "json", "__key__"))
    assert len({key for _, _, key in found}) == len(found) == COUNT
    for number, (image, text, _) in enumerate(found):
        assert np.array_equal(np.asarray(image), split.image(number))
        assert (text["width"], text["height"]) == image.size


def listed(split: Path, path: Path) -> list[tuple[str, int]]:
    """Names and sizes as our walk of the headers finds them."""
    assert path.parent == split
    return [(member.name, member.size) for member in members_of(path)]


def test_pythons_tarfile_lists_our_shards(built: Path) -> None:
    for path in (built / "train").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert [(member.name, member.size) for member in tar] == listed(built / "train", path)


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar command")
def test_the_tar_command_lists_and_unpacks_our_shards(built: Path, tmp_path: Path) -> None:
    for path in (built / "train").glob("*.tar"):
        command = ["tar", "tvf", str(path)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        table = [line.split() for line in lines.splitlines()]
        assert [(row[-1], int(row[2])) for row in table] == listed(built / "train", path)
        subprocess.run(["tar", "xf", str(path), "-C", str(tmp_path)], check=True)
        assert all((tmp_path / row[-1]).stat().st_size == int(row[2]) for row in table)


def webdatasets_own(folder: Path, form: str) -> None:
    """Write shards of 3 with webdataset's ShardWriter."""
    folder.mkdir()
    pattern, suffix = str(folder / "shard-%03d.tar"), {"JPEG": "jpg"}.get(form, form.lower())
    with webdataset.ShardWriter(pattern, maxcount=3, verbose=0) as sink:
        for n in range(COUNT):
            text = {"captions": captions_of(n), "class": n % 4}
            sink.write({"__key__": f"{n:05d}", suffix: image_bytes(n, form), "json": text})


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_shards_of_webdatasets_writer_are_indexed_and_streamed(tmp_path: Path, form: str) -> None:
    webdatasets_own(tmp_path / "in", form)
    output = tmp_path / "out"
    build_split(
        ShardsConfig(
            source="webdataset",
            format="original",
            images=str(tmp_path / "in"),
            output=str(output),
            shard_samples=4,
        )
    )
    config = DataConfig(path=str(output), workers=0, max_tokens=8)
    split = Split.open(config, "train")
    verify_split(split.manifest, lambda _: None)
    for number in range(COUNT):
        sample = split.sample(number)
        assert sample.image == image_bytes(number, form)
        assert (list(sample.captions), sample.class_id) == (captions_of(number), number % 4)
        assert np.array_equal(split.image(number), decode(image_bytes(number, form)))
    batches = indexed_loader(config, split, 24, seed=1, rank_slice=RankSlice(COUNT)).batches(0)
    batch = next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert batch.images.shape == (COUNT, 3, 24, 24)
    expected = {f"shard-{n // 3:03d}/{n:05d}": (n % 4, captions_of(n)) for n in range(COUNT)}
    assert set(batch.keys) == set(expected)
    for key, class_id, caption in zip(batch.keys, batch.classes, batch.captions, strict=True):
        assert int(class_id) == expected[key][0]
        assert caption in expected[key][1]
