"""The protocols that ship do what the literature did; what was changed in them says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from t2i_hpc.common.files import resource
from t2i_hpc.config.compose import compose_config, group_choices
from t2i_hpc.config.evaluation import METRICS, EvaluationConfig
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.evaluation.detectors.inception import InceptionV3
from t2i_hpc.evaluation.image_sources import generation_rules
from t2i_hpc.evaluation.metrics import METRICS as MEASURED
from t2i_hpc.evaluation.protocol_names import protocol_names
from t2i_hpc.evaluation.published import FAMILIES, published_beside, published_scores
from t2i_hpc.sampling.rules import GenerationRules
from tests.evaluation.conftest import some_images
from tests.evaluation.literature import PRESETS
from tests.evaluation.test_protocol import PROTOCOL

NAMES = [name for name in group_choices("evaluation") if name != "default"]
LITERATURE = sorted(PRESETS)


def _preset(name: str, *words: str, folder: Path | None = None) -> EvaluationConfig:
    return compose_config(
        "evaluate", [f"evaluation={name}", *words], EvaluateConfig, folder
    ).evaluation


@pytest.mark.parametrize("name", LITERATURE)
def test_a_preset_is_what_the_sources_say(name: str) -> None:
    preset, usual = _preset(name), EvaluationConfig()
    facts = {fact.setting: fact.value for fact in PRESETS[name]}
    assert {setting: getattr(preset, setting) for setting in facts} == facts
    # Nothing is set without a source.
    changed = {
        field.name
        for field in dataclasses.fields(preset)
        if getattr(preset, field.name) != getattr(usual, field.name)
    }
    assert changed <= {"protocol", *facts}


@pytest.mark.parametrize("name", LITERATURE)
def test_every_value_of_a_preset_has_its_source_beside_it(name: str) -> None:
    text = (resource("configs") / "evaluation" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    bare = [line for line in lines if " # " not in line]
    assert [line.split(":")[0] for line in bare] == ["protocol", "metrics"]


@pytest.mark.parametrize("name", LITERATURE)
def test_levels_are_those_of_the_literatures_code(name: str) -> None:
    values = torch.tanh(torch.randn(200_000, generator=torch.Generator().manual_seed(1)))
    # AttnGAN's, DM-GAN's and SSA-GAN's two lines, in NumPy as there.
    expected = ((values.numpy() + 1.0) * 127.5).astype(np.uint8)
    levels = generation_rules(_preset(name)).levels(values)
    np.testing.assert_array_equal(levels.numpy(), expected)


def test_a_caption_is_drawn_anew_in_every_pass_as_dm_gans_loader_does() -> None:
    rules, samples, captions = generation_rules(_preset("literature_cub")), 50, 10
    chosen = np.array(
        [rules.caption_of(number, samples, captions, seed=1) for number in range(11 * samples)]
    ).reshape(11, samples)
    # In turn, the captions of a pass would all be the same one, and none would come twice.
    assert all(len(set(row)) > 5 for row in chosen.tolist())
    assert any(len(set(column)) < captions for column in chosen[:captions].T.tolist())
    in_turn = GenerationRules(captions="all")
    assert {in_turn.caption_of(number, samples, captions, seed=1) for number in range(50)} == {0}


def test_the_inception_score_sees_what_is_py_sees(inception_file: Path) -> None:
    side = _preset("ssagan_code").inception_score_size
    images = some_images(2, 64, seed=1)
    # scipy.misc.imresize of an 8-bit image was Pillow's bilinear filter.
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    shrunk = [np.asarray(p.resize((128, 128), Image.Resampling.BILINEAR)) for p in pictures]
    expected = torch.from_numpy(np.stack(shrunk)).permute(0, 3, 1, 2)
    detector = InceptionV3(inception_file, torch.device("cpu"), score_side=side)
    seen, ones = [], torch.ones(2, 2048)

    def features(images: Tensor) -> Tensor:
        seen.append(images)
        return ones

    with mock.patch.object(detector, "features", features):
        logits = detector.logits(torch.zeros(2, 2048), images)
    (scaled,) = seen
    assert scaled.dtype == torch.uint8
    # as_pillow is one level off Pillow in a few pixels.
    assert (scaled.int() - expected.int()).abs().max() <= 1
    plain = InceptionV3(inception_file, torch.device("cpu"))
    torch.testing.assert_close(logits, plain.logits(ones, images))


def _names(name: str, *words: str, folder: Path | None = None) -> dict[str, str]:
    return protocol_names(_preset(name, *words, folder=folder), PROTOCOL)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_as_it_is_keeps_its_name(name: str) -> None:
    places = ("evaluation.data=some", "evaluation.shards=3", "evaluation.batch_size=64")
    encoders = ("evaluation.text_encoder=a", "evaluation.image_encoder=b", "evaluation.clip=c")
    assert set(_names(name, *places, *encoders).values()) == {name}


WITH_REAL = {
    "fid",
    "kid",
    "mind",
    "prc",
    "density_coverage",
    "cmmd",
    "memorization",
    "fid_infinity",
}


@pytest.mark.parametrize(
    ("word", "moved"),
    [
        ("images=1000", set(METRICS)),
        ("truncation=0.5", set(METRICS)),
        ("rounding=nearest", set(METRICS)),
        ("seed=2", set(METRICS)),
        ("split=train", set(METRICS)),
        ("real_filter=lanczos", WITH_REAL),
        ("detector=inception", {*WITH_REAL, "is", "diversity"}),
        ("detector_precision=bfloat16", {*WITH_REAL, "is", "diversity"}),
        ("images_per_caption=4", set(METRICS)),
        ("memorized_share=0.05", {"memorization"}),
        ("kid_subsets=7", {"kid"}),
        ("folds=5", {"r_precision"}),
    ],
)
def test_what_was_changed_says_so_where_it_counts(word: str, moved: set[str]) -> None:
    names = _names("literature_coco", f"evaluation.{word}")
    expected = {name: "literature_coco" + " (modified)" * (name in moved) for name in METRICS}
    assert names == expected


def test_a_shards_command_means_the_same_preset(tmp_path: Path) -> None:
    preset, usual = _preset("literature_coco", "evaluation.folds=5"), EvaluationConfig()
    words = [
        f"evaluation.{field.name}={getattr(preset, field.name)}".replace("'", "")
        for field in dataclasses.fields(preset)
        if getattr(preset, field.name) != getattr(usual, field.name)
    ]
    names = _names("default", *words)
    assert (names["fid"], names["r_precision"]) == (
        "literature_coco",
        "literature_coco (modified)",
    )


def test_a_preset_of_a_users_folder_is_looked_up_too(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    file = tmp_path / "evaluation" / "lab.yaml"
    file.write_text("protocol: our lab\nimages: 500\nsplit: test\n")
    assert set(_names("lab", folder=tmp_path).values()) == {"our lab"}
    changed = _names("lab", "evaluation.images=400", folder=tmp_path)
    assert set(changed.values()) == {"our lab (modified)"}


def test_every_metric_on_offer_is_measured() -> None:
    assert set(METRICS) == set(MEASURED)


def _stated(*words: Any) -> dict[str, float]:
    return {row.system: row.value for row in published_beside(*words)}


def test_published_numbers_stand_beside_their_own_kind() -> None:
    assert set(FAMILIES) <= set(NAMES)
    cub = _stated("FID (literature)", "literature_cub", "", 30_000)
    assert cub == {"AttnGAN": 23.98, "DM-GAN (paper)": 16.09, "DM-GAN (released)": 15.34}
    coco = _stated("FID (literature)", "literature_coco", "", 30_000)
    assert coco == {"AttnGAN": 35.49, "DM-GAN (paper)": 32.64, "DM-GAN (released)": 26.55}
    tensorflow = _stated("FID", "ssagan_paper", "cub", 30_000)
    assert tensorflow["AttnGAN"] == 14.01
    assert tensorflow["SSA-GAN"] == 15.61
    assert _stated("FID", "ssagan_paper", "coco", 30_000)["AttnGAN"] == 29.53
    scores = _stated("Inception score (299 px)", "literature_coco_is", "coco", 30_000)
    assert scores == {"DM-GAN (released)": 32.43, "DM-GAN (paper)": 30.49}
    scores = _stated("Inception score (128 px)", "ssagan_paper", "cub", 30_000)
    assert scores["SSA-GAN, text encoder fine-tuned"] == 5.17
    assert not scores.keys() & {"AttnGAN", "StackGAN", "DF-GAN (first version)"}


@pytest.mark.parametrize(
    "words",
    [
        ("FID (literature)", "literature_cub", "", 29_999),
        ("FID (literature)", "literature_cub (modified)", "", 30_000),
        ("FID", "literature_coco", "coco", 30_000),
        ("FID", "ssagan_code", "cub", 2_928),
        ("FID", "ssagan_code", "cub", 30_000),
        ("FID", "ssagan_paper", "flowers", 30_000),
        ("FID", "clean", "cub", 30_000),
        ("KID", "literature_cub", "cub", 30_000),
        ("Inception score", "ssagan_paper", "cub", 30_000),
        ("R-precision (each run's own encoders)", "literature_cub", "cub", 30_000),
    ],
)
def test_other_conditions_have_no_published_numbers(words: tuple[str, str, str, int]) -> None:
    assert not published_beside(*words)


def test_published_numbers_have_a_source_and_sane_units() -> None:
    rows = list(published_scores())
    assert all(row.source and row.network and row.data in ("cub", "coco") for row in rows)
    assert all(0 < row.value < 1 for row in rows if row.metric == "R-precision")
    beside = published_beside("R-precision", "literature_coco", "", 30_000)
    assert [row.value for row in beside] == [0.9223, 0.8856, 0.8547]
