"""One score in any number of shards; shards that are there are kept; two at once end well."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import t2i_hpc
from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.evaluation.compute import (
    MergedStatistics,
    Sharding,
    merged,
    shard_is_done,
)
from t2i_hpc.evaluation.fid import Moments
from t2i_hpc.evaluation.image_sources import spread
from t2i_hpc.evaluation.pipeline import extract_features
from t2i_hpc.runs.partial_statistics import load_header
from tests.evaluation.comparing import (
    BATCH,
    IMAGES,
    METRICS,
    PROTOCOL,
    compute,
    generated_images,
    make_comparison,
)
from tests.evaluation.fakes import FakeDetector


def test_shards_give_the_same_sums_and_the_same_scores(tmp_path: Path) -> None:
    results: dict[int, tuple[MergedStatistics, list[dict[str, Any]]]] = {}
    for shards in (1, 2, 3, 7, 16):
        comparison = make_comparison(tmp_path / str(shards), shards, metrics=METRICS)
        for shard in reversed(range(shards)):
            compute(comparison, [shard])
        rows = comparison.score()
        results[shards] = merged(comparison.generated, comparison.sharding), rows
    whole, expected = results[1]
    assert whole.sums["count"] == IMAGES
    assert len(expected) == 15
    for statistics, rows in results.values():
        for name, value in whole.sums.items():
            np.testing.assert_allclose(statistics.sums[name], value, rtol=1e-9, err_msg=name)
        hits = f"fold_hits.{PROTOCOL.key_of('r_precision')}"
        np.testing.assert_array_equal(statistics.sums[hits], whole.sums[hits])
        assert statistics.features is not None
        assert whole.features is not None
        np.testing.assert_array_equal(statistics.features, whole.features)
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
    sums = merged(comparison.generated, comparison.sharding).sums
    np.testing.assert_allclose(sums["outer"], expected.outer.numpy(), rtol=1e-12)


def test_a_shard_must_begin_with_a_batch() -> None:
    with pytest.raises(ValueError, match="inside a batch"):
        extract_features(generated_images, FakeDetector(), range(2, 6), BATCH, lambda batch: None)


def test_valid_shards_are_kept_and_damaged_ones_computed_again(tmp_path: Path) -> None:
    first = make_comparison(tmp_path, 3)
    compute(first, [0, 2])
    files = sorted(first.generated.folder.glob("*.npz"))
    assert [path.name[:11] for path in files] == ["shard-00000", "shard-00002"]
    files[1].write_bytes(files[1].read_bytes()[:100])
    second = make_comparison(tmp_path, 3)
    assert second.missing() == {1: ["generated", "real"], 2: ["generated"]}
    # Shards of 5, 5 and 4 generated and 4, 4 and 3 real batches; of real ones only 1 is missing.
    assert compute(second) == (5 + 4 + 4) * BATCH
    assert compute(make_comparison(tmp_path, 3)) == 0
    assert second.missing() == {}
    second.score()


def test_features_that_are_cut_short_are_computed_again(tmp_path: Path) -> None:
    first = make_comparison(tmp_path, 3, metrics=["kid"])
    compute(first)
    path = sorted(first.generated.folder.glob("*.float32.npy"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    assert not shard_is_done(first.generated, first.sharding, 1)
    assert first.missing() == {1: ["generated"]}
    assert compute(make_comparison(tmp_path, 3, metrics=["kid"])) == 5 * BATCH


def test_more_metrics_are_computed_anew_and_fewer_are_served(tmp_path: Path) -> None:
    compute(make_comparison(tmp_path))
    more = make_comparison(tmp_path, metrics=["r_precision", "fid"])
    assert more.missing() == {0: ["generated"]}
    assert compute(more) == 14 * BATCH
    assert compute(make_comparison(tmp_path, metrics=["r_precision"])) == 0


@pytest.mark.parametrize("shards", [1, 3])
def test_the_inception_score_is_there_for_who_asks_later(tmp_path: Path, shards: int) -> None:
    first = make_comparison(tmp_path, shards)
    compute(first)
    first.score()
    later = make_comparison(tmp_path, 2, metrics=["is"])
    assert later.missing() == {}
    (row,) = later.score()
    alone = make_comparison(tmp_path / "alone", metrics=["is"])
    compute(alone)
    assert alone.score()[0]["value"] == pytest.approx(row["value"], rel=1e-9)


def test_settings_of_other_metrics_generate_nothing_again(tmp_path: Path) -> None:
    first = make_comparison(tmp_path, 3, metrics=METRICS)
    compute(first)
    before = first.score()
    changed = replace(PROTOCOL, kid_subsets=2, kid_subset_size=9, neighbors=2)
    other = make_comparison(tmp_path, 3, changed, metrics=METRICS)
    assert compute(other) == 0
    after = other.score()
    same = {row["metric"]: row["value"] for row in before if row in after}
    kept = {"Inception score (fake)", "MIND (fake)", "R-precision", "CLIP score", "FD (fake)"}
    kept |= {
        "CMMD (fake)",
        "memorization (fake)",
        "per-prompt diversity (fake)",
        "FD∞ (fake)",
        "LPIPS diversity",
    }
    assert same.keys() == kept
    moved = {row["metric"] for row in after if row not in before}
    by_neighbors = {f"{name} (fake)" for name in ("precision", "recall", "density", "coverage")}
    assert moved == {"KID (fake)", *by_neighbors}


def test_sums_by_other_settings_stay_beside_new_ones(tmp_path: Path) -> None:
    wide = make_comparison(tmp_path, 3, metrics=METRICS)
    compute(wide)
    rows = wide.score()
    fewer = replace(PROTOCOL, splits=2, folds=2, features="float16")
    narrow = make_comparison(tmp_path, 3, fewer, metrics=METRICS)
    assert compute(narrow) == (14 + 11 + 10) * BATCH
    values = {row["metric"]: row["value"] for row in narrow.score()}
    assert all(values[row["metric"]] != row["value"] for row in rows if "Inc" in row["metric"])
    again = make_comparison(tmp_path, 3, metrics=METRICS)
    assert compute(again) == 0
    assert again.score() == rows


def test_exported_files_of_one_age_do_not_overwrite_each_other(tmp_path: Path) -> None:
    both = [make_comparison(tmp_path, checkpoint=which * 64) for which in "cd"]
    for comparison in both:
        compute(comparison)
    assert [comparison.missing() for comparison in both] == [{}, {}]


def test_shards_of_other_batches_do_not_mix(tmp_path: Path) -> None:
    first = make_comparison(tmp_path, 3)
    compute(first, [0, 1])
    larger = replace(first, sharding=Sharding(3, 2 * BATCH))
    assert set(larger.missing()) == {0, 1, 2}
    assert compute(larger) > 0
    assert first.missing() == {2: ["generated", "real"]}
    # All images by one batch size are a score; it serves who asks with another.
    (row,) = larger.score()
    assert first.missing() == {}
    assert first.score() == [row]


def test_a_row_names_what_made_it(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, 2)
    compute(comparison)
    (row,) = comparison.score()
    (used,) = row["made_with"]
    assert used["torch"] == str(torch.__version__)
    assert used["t2i_hpc"] == t2i_hpc.__version__
    assert "CPU" in used["device"]


def test_shards_of_both_image_sets_name_the_job_that_computed_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that a requeued job knows how far it came itself."""
    comparison = make_comparison(tmp_path, shards=2)
    for shard, job in enumerate(("77", "78")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        compute(comparison, [shard])
    for images in (comparison.generated, comparison.real):
        assert [load_header(images.path_of(shard, 2)).job for shard in (0, 1)] == ["77", "78"]


def test_a_merged_evaluation_serves_any_number_of_shards(tmp_path: Path) -> None:
    first = make_comparison(tmp_path, 3)
    compute(first)
    rows = first.score()
    second = make_comparison(tmp_path, 5)
    assert second.missing() == {}
    assert compute(second) == 0
    assert second.score() == rows
    assert read_json_lines(tmp_path / "scores.jsonl") == rows


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, 3)
    compute(comparison, [0, 2])
    with pytest.raises(EvaluationError, match="shard-00001-of-00003"):
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


def test_protocols_share_the_statistics_of_real_images(tmp_path: Path) -> None:
    first = make_comparison(tmp_path)
    compute(first)
    other = make_comparison(tmp_path, protocol=replace(PROTOCOL, seed=2))
    assert compute(other) == 14 * BATCH
    assert other.generated.folder != first.generated.folder
    place = f"evaluations/{PROTOCOL.generated_hash}/0000002000-{'c' * 12}"
    assert first.generated.folder == tmp_path / place
    assert first.real.folder == tmp_path / "real" / PROTOCOL.real_hash


def test_two_at_once_both_end_well(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    extracted: list[int] = []

    def work() -> None:
        try:
            comparison = make_comparison(tmp_path, 2)
            extracted.append(compute(comparison))
            comparison.score()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(extracted) == (14 + 11) * BATCH  # each shard once, whoever came first
    values = {row["value"] for row in read_json_lines(tmp_path / "scores.jsonl")}
    assert len(values) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_real_images_are_spread_over_the_split() -> None:
    assert spread(range(6), 6, 6) == list(range(6))
    assert spread(range(4), 4, 100) == [0, 25, 50, 75]
    assert spread(range(3, 6), 4, 8) == [6, 0, 2]
