"""One score under any number of parts; parts that are there are kept; two at once end well."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.metrics.evaluate import (
    Merged,
    look_at_images,
    merged,
    part_is_done,
    spread,
)
from t2i_hpc.metrics.moments import Moments
from tests.metrics.comparing import (
    BATCH,
    IMAGES,
    METRICS,
    PROTOCOL,
    compute,
    generated_images,
    make_comparison,
)
from tests.metrics.fakes import FakeDetector


def test_parts_give_the_same_sums_and_the_same_scores(tmp_path: Path) -> None:
    results: dict[int, tuple[Merged, list[dict[str, Any]]]] = {}
    for parts in (1, 2, 3, 7, 16):
        comparison = make_comparison(tmp_path / str(parts), parts, metrics=METRICS)
        for part in reversed(range(parts)):
            compute(comparison, [part])
        rows = comparison.score()
        results[parts] = merged(comparison.generated, comparison.division), rows
    whole, expected = results[1]
    assert whole.sums["count"] == IMAGES
    assert len(expected) == 7
    for sides, rows in results.values():
        for name, value in whole.sums.items():
            np.testing.assert_allclose(sides.sums[name], value, rtol=1e-9, err_msg=name)
        np.testing.assert_array_equal(sides.sums["fold_hits"], whole.sums["fold_hits"])
        assert sides.rows is not None
        assert whole.rows is not None
        np.testing.assert_array_equal(sides.rows, whole.rows)
        for row, other in zip(rows, expected, strict=True):
            assert row["value"] == pytest.approx(other["value"], rel=1e-9)
            assert (row["std"] or 0) == pytest.approx(other["std"] or 0, rel=1e-9)


def test_sums_are_those_of_all_images(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, 3)
    compute(comparison)
    expected = Moments.empty(FakeDetector.identity.width)
    for first in range(0, IMAGES, BATCH):
        rows = FakeDetector().features(generated_images(range(first, first + BATCH)))
        expected.add_rows(rows[: IMAGES - first])
    sums = merged(comparison.generated, comparison.division).sums
    np.testing.assert_allclose(sums["outer"], expected.outer.numpy(), rtol=1e-12)


def test_a_part_must_begin_with_a_batch() -> None:
    with pytest.raises(ValueError, match="inside a batch"):
        look_at_images(generated_images, FakeDetector(), range(2, 6), BATCH, lambda seen: None)


def test_valid_parts_are_kept_and_damaged_ones_computed_again(tmp_path: Path) -> None:
    first = make_comparison(tmp_path, 3)
    compute(first, [0, 2])
    files = sorted(first.generated.folder.glob("*.npz"))
    assert [path.name[:10] for path in files] == ["part-00000", "part-00002"]
    files[1].write_bytes(files[1].read_bytes()[:100])
    second = make_comparison(tmp_path, 3)
    assert second.missing() == {1: ["generated", "real"], 2: ["generated"]}
    # Parts of 5, 5 and 4 generated and 4, 4 and 3 real batches; only real part 1 is missing too.
    assert compute(second) == (5 + 4 + 4) * BATCH
    assert compute(make_comparison(tmp_path, 3)) == 0
    assert second.missing() == {}
    second.score()


def test_features_that_are_cut_short_are_computed_again(tmp_path: Path) -> None:
    first = make_comparison(tmp_path, 3, metrics=["kid"])
    compute(first)
    path = sorted(first.generated.folder.glob("*.features.npy"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    assert not part_is_done(first.generated, first.division, 1)
    assert first.missing() == {1: ["generated"]}
    assert compute(make_comparison(tmp_path, 3, metrics=["kid"])) == 5 * BATCH


def test_more_metrics_are_computed_anew_and_fewer_are_served(tmp_path: Path) -> None:
    compute(make_comparison(tmp_path))
    more = make_comparison(tmp_path, metrics=["inception_score", "frechet"])
    assert more.missing() == {0: ["generated"]}
    assert compute(more) == 14 * BATCH
    assert compute(make_comparison(tmp_path, metrics=["inception_score"])) == 0


def test_a_merged_evaluation_serves_any_number_of_parts(tmp_path: Path) -> None:
    first = make_comparison(tmp_path, 3)
    compute(first)
    rows = first.score()
    second = make_comparison(tmp_path, 5)
    assert second.missing() == {}
    assert compute(second) == 0
    assert second.score() == rows
    assert read_json_lines(tmp_path / "scores.jsonl") == rows


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, 3)
    compute(comparison, [0, 2])
    with pytest.raises(EvaluationError, match="part-00001-of-00003"):
        comparison.score()
    assert not (tmp_path / "scores.jsonl").exists()


def test_another_checkpoint_of_the_same_age_is_computed_anew(tmp_path: Path) -> None:
    first = make_comparison(tmp_path)
    compute(first)
    first.score()
    second = make_comparison(tmp_path, checkpoint="d" * 64)
    assert compute(second) == 14 * BATCH
    second.score()
    checkpoints = [row["checkpoint"][0] for row in read_json_lines(tmp_path / "scores.jsonl")]
    assert checkpoints == ["c", "d"]


def test_protocols_share_the_real_side(tmp_path: Path) -> None:
    first = make_comparison(tmp_path)
    compute(first)
    other = make_comparison(tmp_path, protocol=replace(PROTOCOL, seed=2))
    assert compute(other) == 14 * BATCH
    assert other.generated.folder != first.generated.folder
    assert f"/evaluations/{PROTOCOL.hash}/0000002000" in str(first.generated.folder)
    assert first.real.folder == tmp_path / "real" / PROTOCOL.real_hash


def test_two_at_once_both_end_well(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    looked_at: list[int] = []

    def work() -> None:
        try:
            comparison = make_comparison(tmp_path, 2)
            looked_at.append(compute(comparison))
            comparison.score()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(looked_at) == (14 + 11) * BATCH  # each part once, whoever came first
    values = {row["value"] for row in read_json_lines(tmp_path / "scores.jsonl")}
    assert len(values) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_real_images_are_spread_over_the_split() -> None:
    assert spread(range(6), 6, 6) == list(range(6))
    assert spread(range(4), 4, 100) == [0, 25, 50, 75]
    assert spread(range(3, 6), 4, 8) == [6, 0, 2]
