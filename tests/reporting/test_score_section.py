"""Scores on a run's page: error bars, the protocol's name, and the best one marked."""

from __future__ import annotations

import re

from t2i_hpc.evaluation.scores import score_curves
from t2i_hpc.reporting.page import score_section, score_table
from tests.reporting.made_up import score_row


def test_the_best_checkpoint_is_marked_in_table_and_chart() -> None:
    rows = [score_row(images, value) for images, value in ((0, 90.0), (1000, 30.0), (2000, 45.0))]
    curves = score_curves(rows)
    lines = re.findall("<tr>.*?</tr>", score_table(curves))
    assert [line.endswith("<td>best</td></tr>") for line in lines] == [False, False, True, False]
    assert "best 30" in score_section(curves)


def test_the_highest_is_best_where_higher_is_better() -> None:
    rows = [
        {**score_row(images, value), "metric": "R-precision", "better": "higher", "std": 0.02}
        for images, value in ((0, 0.5), (1000, 0.7))
    ]
    (curve,) = score_curves(rows)
    assert curve.best.images == 1000
    assert "70 ± 2 %" in score_table([curve])
    assert "biases" not in curve.caution


def test_weights_of_one_age_are_scores_of_their_own() -> None:
    rows = [score_row(0, 9.0, checkpoint="a"), score_row(0, 7.0, checkpoint="b")]
    (curve,) = score_curves([*rows, score_row(0, 8.0, checkpoint="a")])
    assert [(score.checkpoint, score.value) for score in curve.scores] == [("a", 8.0), ("b", 7.0)]


def test_only_a_frechet_distance_is_biased_by_few_images() -> None:
    names = ["FID", "clean FID", "FD (EfficientNet-Lite0)", "KID", "KID (fake)"]
    rows = [{**score_row(0, 1.0), "metric": name} for name in names]
    biased = {curve.metric: "biases" in curve.caution for curve in score_curves(rows)}
    assert biased == {name: "KID" not in name for name in names}


def test_the_protocols_name_stands_beside_its_hash() -> None:
    rows = [{**score_row(0, 1.0), "protocol_name": "literature_cub"}]
    section = score_section(score_curves(rows))
    assert "Protocol literature_cub abc123def456" in section
    assert "<td>literature_cub abc123def456</td>" in section
