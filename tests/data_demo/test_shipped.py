"""The shards that ship: whole, small, and as their README says."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2i_hpc.common.files import resource
from t2i_hpc.data.captions import Vocabulary, tokenize
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.images import decode
from t2i_hpc.data.verification import verify_split

DEMO = resource("shards_demo")
SPLITS = ("train", "test")
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)
FLAGS = {0x1F3C1, 0x1F6A9, 0x1F38C, 0x1F3F4, 0x1F3F3}
SKIN_TONES = range(0x1F3FB, 0x1F400)


def samples(split: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    for path in sorted((DEMO / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member) for member in tar}
            content = {name: file.read() for name, file in files.items() if file}
        for name, text in content.items():
            if name.endswith(".json"):
                yield json.loads(text), content[name.removesuffix("json") + "jpg"]


@pytest.fixture(scope="module")
def descriptions() -> dict[str, list[dict[str, Any]]]:
    return {split: [description for description, _ in samples(split)] for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_the_shards_are_those_of_the_manifest(split: str) -> None:
    manifest = Manifest.load(DEMO / split)
    verify_split(manifest, lambda _: None)
    assert manifest.smallest == 80


def test_there_are_enough_emoji_with_five_captions(
    descriptions: dict[str, list[dict[str, Any]]],
) -> None:
    rows = descriptions["train"] + descriptions["test"]
    assert len(descriptions["train"]) >= 1000
    assert len(descriptions["test"]) >= 150
    assert len({row["key"] for row in rows}) == len(rows)
    for row in rows:
        assert len(set(row["captions"])) == 5
        assert all(1 <= len(tokenize(caption)) <= 18 for caption in row["captions"])


def test_the_readme_gives_the_counts(descriptions: dict[str, list[dict[str, Any]]]) -> None:
    readme = (DEMO / "README.md").read_text("utf-8")
    train, test = (len(descriptions[split]) for split in SPLITS)
    assert f"# Demo data: {train + test:,} emoji" in readme
    assert f"| **all** | **{train:,}** | **{test:,}** |" in readme


def test_neither_flags_nor_skin_tones(descriptions: dict[str, list[dict[str, Any]]]) -> None:
    for row in descriptions["train"] + descriptions["test"]:
        points = [int(point, 16) for point in Path(row["key"]).stem.split("-")]
        assert points[0] not in FLAGS
        assert not any(point in REGIONAL_INDICATORS or point in SKIN_TONES for point in points)


def test_pictures_are_square_on_white() -> None:
    for _, content in samples("test"):
        picture = decode(content)
        assert picture.shape == (80, 80, 3)
        assert np.percentile(picture, 99) > 200


def test_every_word_is_in_the_vocabulary(descriptions: dict[str, list[dict[str, Any]]]) -> None:
    vocabulary = Vocabulary.load(DEMO / "vocabulary.json")
    rows = descriptions["train"] + descriptions["test"]
    texts = [caption for row in rows for caption in row["captions"]]
    assert [word for text in texts for word in vocabulary.unknown(text)] == []
    assert vocabulary.words == Vocabulary.from_captions(texts).words


def test_the_demo_stays_below_eight_megabytes() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_the_licences_are_there() -> None:
    notice = (DEMO / "NOTICE").read_text("utf-8")
    for owner in ("Microsoft Corporation", "LobeHub", "Miles Johnson"):
        assert owner in notice
    assert "Permission is hereby granted, free of charge" in notice
