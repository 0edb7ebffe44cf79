"""Networks that a run was trained against: refused as its only judge, and their scores marked."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.gan_settings import SystemConfig
from t2i_hpc.config.one_stage_settings import CLIPGANConfig, SSAGANConfig
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.evaluation.detectors.detector import DetectorIdentity
from t2i_hpc.evaluation.judges import check_judge, labeled
from t2i_hpc.evaluation.scores import FILE_NAME
from t2i_hpc.reporting.results import read_results
from t2i_hpc.reporting.results_text import to_json, to_markdown
from t2i_hpc.training.session import flattering_evaluations

PROJECTED = SSAGANConfig(discriminator="projected")


def identity(name: str) -> DetectorIdentity:
    return DetectorIdentity(name, f"a {name}", "FD", name, "none", 6, 0, "f" * 64)


@pytest.mark.parametrize(
    ("system", "detector", "label"),
    [(PROJECTED, "efficientnet_lite0", "EfficientNet-Lite0"), (CLIPGANConfig(), "clip", "CLIP")],
)
def test_another_judge_comes_first(
    system: SystemConfig, detector: str, label: str, tmp_path: Path
) -> None:
    settings = EvaluationConfig(detector=detector, metrics=["fid"])
    scores = tmp_path / FILE_NAME
    for rows in ("", f'{{"detector_label": "{label} again"}}\n'):
        scores.write_text(rows)
        with pytest.raises(EvaluationError, match="score it by"):
            check_judge(system, settings, tmp_path)
    scores.write_text('{"detector_label": "Inception-v3"}\n')
    check_judge(system, settings, tmp_path)
    found = labeled(identity(detector), system, settings)
    assert found.label.startswith(f"a {detector}; the run's own ")
    assert labeled(identity(detector), SSAGANConfig(), settings) == identity(detector)


def test_a_clip_score_of_a_run_that_clip_trained_says_so() -> None:
    settings = EvaluationConfig(metrics=["fid", "clip_score"])
    found = labeled(identity("inception"), CLIPGANConfig(), settings)
    assert found.label_of("fid") == "a inception"
    assert found.label_of("clip_score").endswith("a CLIP's similarity, so the score flatters it")


def test_the_table_marks_such_scores(tmp_path: Path) -> None:
    row = '{"metric": "CLIP score", "value": %s, "n": 4, "detector_label": "%s"}\n'
    for name, value, label in (("galip", 31.5, "so the score flatters it"), ("ssa", 24.5, "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE_NAME).write_text(row % (value, label))
    results = read_results([str(tmp_path / "galip"), str(tmp_path / "ssa")])
    table = to_markdown(results)
    assert "31.5 * |" in table
    assert "24.5 |" in table
    assert table.endswith("\\* by a network that the run was trained against, which flatters it\n")
    assert to_json(results).count('"flattered": true') == 1


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        ('["evaluation.detector=efficientnet_lite0","cluster=slurm"]', True),
        ('["evaluation=demo"]', False),
        ('["evaluation.detector=efficientnet_lite2"]', False),
        ("[]", False),
    ],
)
def test_a_training_warns_of_its_background_evaluations(overrides: str, warned: bool) -> None:
    own = ["system=ssa_gan", f"evaluation.overrides={overrides}", "evaluation.every_images=100"]
    config = compose_config("train", [*own, "system.discriminator=projected"], TrainConfig)
    said = flattering_evaluations(config)
    assert ("put evaluation.detector=efficientnet_lite2 into" in said) == warned
    assert not flattering_evaluations(compose_config("train", own, TrainConfig))
