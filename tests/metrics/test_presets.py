"""The protocols that ship: each composes, says its own name and is unlike the others."""

from __future__ import annotations

import dataclasses

import pytest

from t2i_hpc.common.resources import resource
from t2i_hpc.config.compose import compose_config, group_choices
from t2i_hpc.config.evaluation import METRICS, EvaluationConfig
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.metrics.published import FAMILIES, published_beside, published_scores
from t2i_hpc.metrics.values import METRICS as MEASURED

NAMES = [name for name in group_choices("evaluation", [resource("configs")]) if name != "default"]


def _preset(name: str) -> EvaluationConfig:
    return compose_config("evaluate", [f"evaluation={name}"], EvaluateConfig).evaluation


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_its_own_name(name: str) -> None:
    preset = _preset(name)
    assert preset.protocol == name
    assert "frechet" in preset.metrics


def test_the_issued_presets_are_there_and_differ() -> None:
    assert {"literature_coco", "literature_cub", "ssagan_code", "clean", "demo"} <= set(NAMES)
    contents = [
        tuple(
            sorted(
                (k, str(v)) for k, v in dataclasses.asdict(_preset(n)).items() if k != "protocol"
            )
        )
        for n in NAMES
    ]
    assert len(set(contents)) == len(NAMES)


def test_the_released_code_is_taken_at_its_word() -> None:
    code = _preset("ssagan_code")
    assert (code.images, code.rounding, code.weights, code.splits) == (2928, "down", "latest", 3)
    assert code.images == 2933 // 24 * 24


def test_every_metric_on_offer_is_measured() -> None:
    assert set(METRICS) == set(MEASURED)


def test_published_numbers_stand_beside_their_own_kind() -> None:
    assert set(FAMILIES) <= set(NAMES)
    cub = {
        row.system: row.value for row in published_beside("FID (literature)", "literature_cub", "")
    }
    assert cub["AttnGAN"] == 23.98
    assert cub["DM-GAN (paper)"] == 16.09
    coco = {
        row.system: row.value for row in published_beside("FID (literature)", "literature_coco", "")
    }
    assert coco["AttnGAN"] == 35.49
    tensorflow = {row.system: row.value for row in published_beside("FID", "ssagan_code", "cub")}
    assert tensorflow["AttnGAN"] == 14.01
    coco = {row.system: row.value for row in published_beside("FID", "ssagan_code", "coco")}
    assert coco["AttnGAN"] == 29.53
    assert not published_beside("FID", "ssagan_code", "flowers")
    assert not published_beside("FID", "literature_coco", "coco")
    assert not published_beside("FID", "clean", "cub")
    assert not published_beside("KID", "literature_cub", "cub")
    assert not published_beside("R-precision (each run's own encoders)", "literature_cub", "cub")


def test_scores_of_the_network_of_birds_stand_beside_none() -> None:
    rows = published_beside("Inception score", "ssagan_code", "cub")
    assert {row.system for row in rows} >= {"SSA-GAN", "DF-GAN (first version)"}
    assert not {row.system for row in rows} & {"AttnGAN", "StackGAN"}


def test_published_numbers_have_a_source_and_sane_units() -> None:
    rows = list(published_scores())
    assert all(row.source and row.network and row.data in ("cub", "coco") for row in rows)
    assert all(0 < row.value < 1 for row in rows if row.metric == "R-precision")
    assert [row.value for row in published_beside("R-precision", "literature_coco", "")] == [
        0.9223,
        0.8856,
        0.8547,
    ]
