"""Damaged and forged manifests, tables and vocabularies: refused in words, never believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies

from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.format.tables import ROW, sha256_of_rows
from t2i_hpc.data.tar_reader import Reader, StoredSample
from tests.support.data import make_shards
from tests.support.mutations import Mutation, fuzz, mutate, mutations, refused

SAMPLES = 5
MANIFESTS, TABLES, FORGED, WORDS = 1500, 1000, 1500, 1500
NUMBERS = [0, 1, 2, 3, 511, 512, 1536, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1]


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return make_shards(tmp_path, count=SAMPLES, size=16, shard_samples=3) / "train"


def read_all(split: Path) -> list[StoredSample]:
    manifest = Manifest.load(split)
    reader = Reader(manifest)
    return [reader.read(number) for number in range(manifest.sample_count)]


def expect_refusal_or(
    whole: Sequence[StoredSample], split: Path, seen: list[int]
) -> Callable[[], None]:
    """Return a check that a split is refused or read as it was before it was changed."""

    def read() -> None:
        assert read_all(split) == whole

    def check() -> None:
        seen[refused(read)] += 1

    return check


@pytest.mark.parametrize(
    ("name", "count"),
    [("manifest.json", MANIFESTS), ("index.npy", TABLES), ("shards.npy", TABLES)],
)
def test_3500_damaged_files_of_a_split_are_refused_or_harmless(
    split: Path, name: str, count: int
) -> None:
    content, seen = (split / name).read_bytes(), [0, 0]
    check_split = expect_refusal_or(read_all(split), split, seen)

    @fuzz(count)
    @given(mutations())
    def check(changes: list[Mutation]) -> None:
        (split / name).write_bytes(mutate(content, changes))
        check_split()

    check()
    assert sum(seen) >= count
    assert seen[True] > count // 2


def test_1000_damaged_tables_that_the_manifest_vouches_for(split: Path) -> None:
    """An attacker, or a broken writer, puts the right hash into the manifest."""
    path, seen = split / "shards.npy", [0, 0]
    content = path.read_bytes()
    check_split = expect_refusal_or(read_all(split), split, seen)

    @fuzz(TABLES)
    @given(mutations())
    def check(changes: list[Mutation]) -> None:
        path.write_bytes(mutate(content, changes))
        vouch_for_the_table(split)
        check_split()

    check()
    assert sum(seen) >= TABLES


def test_1500_forged_indexes_whose_hashes_are_right(split: Path) -> None:
    """Rows point anywhere: before, behind and across the tar's end."""
    table, index = np.load(split / "shards.npy"), np.load(split / "index.npy")
    whole, seen = read_all(split), [0, 0]
    edit = strategies.tuples(
        strategies.integers(0, SAMPLES - 1),
        strategies.sampled_from(ROW.names or ()),
        strategies.sampled_from(NUMBERS),
    )

    @fuzz(FORGED)
    @given(strategies.lists(edit, min_size=1, max_size=3))
    def check(edits: list[tuple[int, str, int]]) -> None:
        forged = index.copy()
        for row, field, number in edits:
            forged[field][row] = number & ((1 << 8 * ROW[field].itemsize) - 1)
        np.save(split / "index.npy", forged)
        for shard in table:
            rows = forged[shard["first"] :][: shard["count"]]
            shard["rows_sha256"] = np.frombuffer(bytes.fromhex(sha256_of_rows(rows)), np.uint8)
        np.save(split / "shards.npy", table)
        vouch_for_the_table(split)
        seen[refused(lambda: same_images(read_all(split), whole))] += 1

    check()
    assert sum(seen) >= FORGED
    assert seen[True] > FORGED // 2


def vouch_for_the_table(split: Path) -> None:
    """Put the hash of shards.npy into the manifest; quicker than to save it, without fsync."""
    path = split / "manifest.json"
    content = json.loads(path.read_text())
    content["shards_sha256"] = sha256_of_file(split / "shards.npy")
    path.write_text(json.dumps(content))


def same_images(found: list[StoredSample], whole: list[StoredSample]) -> None:
    """What passes its checksum is what was written; only a format's name has none."""
    assert [sample.image for sample in found] == [sample.image for sample in whole]


WORDLISTS = (
    b'{"format": 1, "words": ["<end>", "a", "red", "circle"]}',
    b'{"words": ["<end>", "na\xc3\xafve", "\\ud800", "b\\u0000"], "format": 1.0, "more": {}}',
    b'{"format": 1, "words": ["<end>"' + b', "w"' * 40 + b"]}",
)


@pytest.mark.parametrize("place", range(len(WORDLISTS)))
def test_1500_damaged_vocabularies_are_refused_or_usable(tmp_path: Path, place: int) -> None:
    path, seen = tmp_path / "vocabulary.json", [0, 0]

    def load() -> None:
        vocabulary = Vocabulary.load(path)
        assert vocabulary.size == len(set(vocabulary.words)) >= 1
        vocabulary.encode("a red circle")
        assert len(vocabulary.sha256) == 64

    @fuzz(WORDS // 3)
    @given(mutations())
    def check(changes: list[Mutation]) -> None:
        path.write_bytes(mutate(WORDLISTS[place], changes))
        seen[refused(load)] += 1

    check()
    assert sum(seen) >= WORDS // 3


BOMBS = {
    "lists": b"[" * 200_000,
    "objects": b'{"a":' * 100_000,
    "closed": b"[" * 50_000 + b"]" * 50_000,
    "a long number": b'{"format": ' + b"9" * 100_000 + b"}",
    "an endless number": b'{"format": 1e999, "words": ["<end>"]}',
}


@pytest.mark.parametrize("name", ["manifest.json", "../vocabulary.json"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_json_bombs_are_refused(split: Path, name: str, bomb: str) -> None:
    (split / name).write_bytes(BOMBS[bomb])
    if name == "manifest.json":
        assert refused(lambda: Manifest.load(split))
    else:
        assert refused(lambda: Vocabulary.load(split / name))
