"""Captions are encoded once per encoder, and kept in files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i_hpc.evaluation.caption_codes import (
    BLOCK,
    NOTHING_KEPT,
    CaptionCache,
    CodesByNumber,
    digest_of_tensors,
)

CPU = torch.device("cpu")


class Encoder:
    """Says of each caption how long it is, and counts what it encodes."""

    def __init__(self) -> None:
        self.captions = 0

    def __call__(self, captions: Sequence[str]) -> Tensor:
        self.captions += len(captions)
        return torch.tensor([[float(len(caption)), 1.0] for caption in captions])


def _codes(encoder: Encoder, cache: CaptionCache, name: str = "one") -> CodesByNumber:
    return CodesByNumber(2 * BLOCK + 7, lambda n: "a" * (n // 4), encoder, cache, name, CPU)


def test_codes_are_made_once_for_all_shards_and_checkpoints(tmp_path: Path) -> None:
    encoder, cache = Encoder(), CaptionCache(tmp_path, 10**6)
    expected = torch.tensor([[float(number // 4), 1.0] for number in range(2 * BLOCK + 7)])
    first = _codes(encoder, cache)
    for start in range(0, BLOCK + 40, 40):  # which lie in two blocks once
        torch.testing.assert_close(first(range(start, start + 40)), expected[start : start + 40])
    assert encoder.captions == 2 * BLOCK // 4  # each caption once
    rest = _codes(encoder, cache)(range(2 * BLOCK, 2 * BLOCK + 7))
    torch.testing.assert_close(rest, expected[2 * BLOCK :])
    assert encoder.captions == 2 * BLOCK // 4 + 2
    again = _codes(encoder, cache)(range(BLOCK - 3, BLOCK + 5))
    torch.testing.assert_close(again, expected[BLOCK - 3 : BLOCK + 5])
    assert encoder.captions == 2 * BLOCK // 4 + 2
    _codes(encoder, cache, "another encoder")(range(3))
    assert encoder.captions == 3 * BLOCK // 4 + 2


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    encoder, cache = Encoder(), CaptionCache(tmp_path, 10**6)
    whole = _codes(encoder, cache)(range(9))
    (path,) = tmp_path.glob("*.npz")
    content = bytearray(path.read_bytes())
    for damaged in (bytes(content[:99]), b"", bytes(content).replace(b"\x80?", b"\x81?", 1)):
        assert damaged != content
        path.write_bytes(damaged)
        torch.testing.assert_close(_codes(encoder, cache)(range(9)), whole)
        assert path.read_bytes() == content
    assert encoder.captions == 4 * BLOCK // 4


def test_the_files_keep_a_limit(tmp_path: Path) -> None:
    def make() -> Tensor:
        return torch.ones(100, 10)

    cache = CaptionCache(tmp_path, 9000)
    for number in range(5):
        cache.codes([str(number)], CPU, make)
        for age, path in enumerate(sorted(tmp_path.glob("*.npz"), key=os.path.getmtime)):
            os.utime(path, (age, age))
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert len(list(tmp_path.iterdir())) == 4  # and a lock for each
    CaptionCache(tmp_path / "small", 3999).codes(["a"], CPU, make)
    assert not list((tmp_path / "small").glob("*.npz"))
    assert torch.equal(NOTHING_KEPT.codes(["a"], CPU, make), make())


def test_a_folder_that_cannot_be_written_to_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    found = CaptionCache(tmp_path / "file" / "below", 9000).codes(["a"], CPU, lambda: torch.ones(1))
    assert torch.equal(found, torch.ones(1))
    assert "codes are not kept" in caplog.text


def test_an_encoder_is_known_by_its_tensors() -> None:
    one = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    same = {"b": torch.zeros(2, 2), "a": torch.ones(3)}
    others = ({**one, "a": torch.ones(1, 3)}, {**one, "a": torch.full((3,), 2.0)}, {"a": one["a"]})
    assert digest_of_tensors(one) == digest_of_tensors(same)
    assert len({digest_of_tensors(each) for each in (one, *others)}) == 4
