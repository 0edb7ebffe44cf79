"""What is said and done about scores that a run was trained on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import append_json_line
from t2i_hpc.config.compose import compose_config, to_yaml
from t2i_hpc.config.tasks import EvaluateConfig, TrainConfig
from t2i_hpc.evaluation.detectors import identify_detector
from t2i_hpc.evaluation.judges import check_judge, labeled, with_second_judge
from t2i_hpc.reporting.page import trained_by_scores
from t2i_hpc.reporting.results import read_results
from t2i_hpc.reporting.results_text import to_markdown

LITE0, LITE2 = (f"efficientnet_lite{number}" for number in (0, 2))
TRAINED: Any = SimpleNamespace(fd_weight=1.0)
OTHER: Any = SimpleNamespace(fd_weight=0.0)


def asked(*overrides: str) -> EvaluateConfig:
    return compose_config("evaluate", ["run=any", *overrides], EvaluateConfig)


@pytest.mark.parametrize(("detector", "second"), [(LITE0, LITE2), (LITE2, LITE0)])
def test_fid_of_what_was_trained_on_it_brings_a_second_judge(detector: str, second: str) -> None:
    config = asked(f"evaluation.detector={detector}", "evaluation.metrics=[fid,kid]")
    first, other = with_second_judge(config, TRAINED)
    assert first is config
    assert (other.evaluation.detector, other.evaluation.metrics) == (second, ["fid"])
    assert list(with_second_judge(config, OTHER)) == [config]
    alone = asked("evaluation.metrics=[kid]")
    assert list(with_second_judge(alone, TRAINED)) == [alone]


def test_the_network_of_the_loss_is_no_only_judge_and_every_label_warns(tmp_path: Path) -> None:
    settings = [asked(f"evaluation.detector={name}").evaluation for name in (LITE0, LITE2)]
    labels = [labeled(identify_detector(one), TRAINED, one).label for one in settings]
    assert all("trained on a Fréchet distance" in label for label in labels)
    assert "what it was trained on" in labels[0]
    assert "what it was trained on" not in labels[1]
    check_judge(TRAINED, settings[1], tmp_path)
    check_judge(OTHER, settings[0], tmp_path)
    with pytest.raises(EvaluationError, match="only judge"):
        check_judge(TRAINED, settings[0], tmp_path)
    append_json_line(tmp_path / "scores.jsonl", {"detector_label": labels[1]})
    check_judge(TRAINED, settings[0], tmp_path)


def test_page_and_table_warn(tmp_path: Path) -> None:
    row = {"metric": "FID", "value": 2.0, "n": 9, "n_real": 9, "protocol": "aa", "images": 4}
    for weight in ("0.0", "1.0"):
        run = tmp_path / f"weight{weight}"
        append_json_line(run / "scores.jsonl", {**row, "better": "lower"})
        config = compose_config(
            "train", ["system=df_gan", f"system.fd_weight={weight}"], TrainConfig
        )
        (run / "config.yaml").write_text(to_yaml(config))
        record: Any = SimpleNamespace(setting={"system.fd_weight": float(weight)}.get)
        assert ("can be gamed" in trained_by_scores(record)) == (weight == "1.0")
        text = to_markdown(read_results([str(run)]))
        assert ("\nweight1.0: trained on a Fréchet distance" in text) == (weight == "1.0")
