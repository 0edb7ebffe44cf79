"""One score under any number of parts; parts that are there are kept; two at once end well."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.metrics.comparison import Comparison, Subject
from t2i_hpc.metrics.evaluate import Division, compute_part, merged_moments, spread
from t2i_hpc.metrics.moments import Moments
from t2i_hpc.metrics.protocol import Protocol
from tests.metrics.fakes import FakeDetector, fake_images
from tests.metrics.test_protocol import PROTOCOL as ANY_PROTOCOL

IMAGES, REAL_IMAGES, BATCH = 53, 41, 4
PROTOCOL = replace(ANY_PROTOCOL, images=IMAGES, real_images=REAL_IMAGES, resolution=8)


def _generated(numbers: Sequence[int]) -> Tensor:
    return fake_images(numbers, seed=0)


def _real(numbers: Sequence[int]) -> Tensor:
    return fake_images(spread(numbers, REAL_IMAGES, REAL_IMAGES), seed=1)


def _comparison(
    run: Path, parts: int = 1, protocol: Protocol = PROTOCOL, checkpoint: str = "c" * 64
) -> Comparison:
    subject = Subject(checkpoint, 2000, _generated)
    return Comparison(run, subject, _real, FakeDetector(), protocol, Division(parts, BATCH))


def _computed(comparison: Comparison) -> int:
    detector = comparison.detector
    assert isinstance(detector, FakeDetector)
    return detector.images


def test_parts_give_the_same_moments_and_the_same_score(tmp_path: Path) -> None:
    results: dict[int, tuple[Moments, float]] = {}
    for parts in (1, 2, 3, 7, 30):
        comparison = _comparison(tmp_path / str(parts), parts)
        for part in reversed(range(parts)):
            comparison.compute([part])
        value = comparison.score()["value"]
        results[parts] = merged_moments(comparison.generated, comparison.division), value
    whole, value = results[1]
    assert whole.count == IMAGES
    assert value > 0
    for merged, other in results.values():
        torch.testing.assert_close(merged.total, whole.total, rtol=1e-9, atol=0)
        torch.testing.assert_close(merged.outer, whole.outer, rtol=1e-9, atol=0)
        assert other == pytest.approx(value, rel=1e-9)


def test_moments_are_those_of_all_images(tmp_path: Path) -> None:
    comparison = _comparison(tmp_path, 3)
    comparison.compute(range(3))
    expected = Moments.empty(FakeDetector.width)
    for first in range(0, IMAGES, BATCH):
        rows = FakeDetector().features(_generated(range(first, first + BATCH)))
        expected.add(rows[: IMAGES - first])
    merged = merged_moments(comparison.generated, comparison.division)
    torch.testing.assert_close(merged.outer, expected.outer, rtol=1e-12, atol=0)


def test_a_part_must_begin_with_a_batch() -> None:
    with pytest.raises(ValueError, match="inside a batch"):
        compute_part(_generated, FakeDetector(), range(2, 6), BATCH, lambda count: None)


def test_valid_parts_are_kept_and_damaged_ones_computed_again(tmp_path: Path) -> None:
    first = _comparison(tmp_path, 3)
    first.compute([0, 2])
    files = sorted(first.generated.folder.iterdir())
    assert [path.name[:10] for path in files] == ["part-00000", "part-00002"]
    files[1].write_bytes(files[1].read_bytes()[:100])
    second = _comparison(tmp_path, 3)
    second.compute(range(3))
    # Parts of 5, 5 and 4 generated and 4, 4 and 3 real batches; only real part 1 is missing too.
    assert _computed(second) == (5 + 4 + 4) * BATCH
    third = _comparison(tmp_path, 3)
    third.compute(range(3))
    assert _computed(third) == 0
    third.score()


def test_a_merged_evaluation_serves_any_number_of_parts(tmp_path: Path) -> None:
    first = _comparison(tmp_path, 3)
    first.compute(range(3))
    row = first.score()
    second = _comparison(tmp_path, 5)
    second.compute(range(5))
    assert _computed(second) == 0
    assert second.score() == row
    assert read_json_lines(tmp_path / "scores.jsonl") == [row]


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    comparison = _comparison(tmp_path, 3)
    comparison.compute([0, 2])
    with pytest.raises(EvaluationError, match="part-00001-of-00003"):
        comparison.score()
    assert not (tmp_path / "scores.jsonl").exists()


def test_another_checkpoint_of_the_same_age_is_computed_anew(tmp_path: Path) -> None:
    first = _comparison(tmp_path)
    first.compute([0])
    first.score()
    second = _comparison(tmp_path, checkpoint="d" * 64)
    second.compute([0])
    assert _computed(second) == 14 * BATCH
    second.score()
    checkpoints = [row["checkpoint"][0] for row in read_json_lines(tmp_path / "scores.jsonl")]
    assert checkpoints == ["c", "d"]


def test_protocols_share_the_real_side(tmp_path: Path) -> None:
    first = _comparison(tmp_path)
    first.compute([0])
    other = _comparison(tmp_path, protocol=replace(PROTOCOL, seed=2))
    other.compute([0])
    assert _computed(other) == 14 * BATCH
    assert other.generated.folder != first.generated.folder
    assert f"/evaluations/{PROTOCOL.hash}/0000002000" in str(first.generated.folder)


def test_two_at_once_both_end_well(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            comparison = _comparison(tmp_path, 2)
            comparison.compute(range(2))
            comparison.score()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    values = {row["value"] for row in read_json_lines(tmp_path / "scores.jsonl")}
    assert len(values) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_identical_sides_have_distance_zero(tmp_path: Path) -> None:
    protocol = replace(PROTOCOL, real_images=IMAGES)
    same = replace(_comparison(tmp_path, 2, protocol), draw_real=_generated)
    same.compute(range(2))
    assert same.score()["value"] == pytest.approx(0, abs=1e-6)


def test_real_images_are_spread_over_the_split() -> None:
    assert spread(range(6), 6, 6) == list(range(6))
    assert spread(range(4), 4, 100) == [0, 25, 50, 75]
    assert spread(range(3, 6), 4, 8) == [6, 0, 2]
