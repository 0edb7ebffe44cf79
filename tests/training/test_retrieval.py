"""Top-1 retrieval: what counts as right, as wrong, and not at all; when it ends a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.encoder_settings import TextEncoderConfig
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.config.one_stage_settings import SSAGANConfig
from t2i_hpc.data.split import Split
from t2i_hpc.training.callbacks.retrieval import (
    HeldOut,
    RetrievalReport,
    most_attended,
    top_1,
    top_1_by_chance,
    warning_of_weak_text,
)
from t2i_hpc.training.checks import check_engine
from tests.support.training import ENGINE, only_run, run_task
from tests.systems.tiny import built


def pairs(captions: list[str], owners: list[int], classes: list[int]) -> HeldOut:
    images = torch.zeros(len(classes), 3, 8, 8, dtype=torch.uint8)
    return HeldOut(images, torch.tensor(classes), captions, torch.tensor(owners))


def score(rows: list[list[float]], of: HeldOut) -> float:
    return top_1(torch.tensor(rows), of)


def test_any_caption_of_the_image_is_right() -> None:
    two = pairs(["a", "b", "c", "d"], [0, 0, 1, 1], [0, 1])
    assert score([[0.1, 0.9, 0.5, 0.2], [0.9, 0.1, 0.2, 0.3]], two) == 0.5
    assert top_1_by_chance(two) == 0.5


def test_the_same_words_are_right_whoever_owns_them() -> None:
    two = pairs(["a", "b", "a", "d"], [0, 0, 1, 1], [0, 1])
    assert score([[0.1, 0.2, 0.9, 0.3], [0.1, 0.9, 0.2, 0.3]], two) == 0.5


def test_captions_of_other_images_of_the_class_do_not_count() -> None:
    birds = pairs(["a", "b", "c"], [0, 1, 2], [7, 7, 8])
    assert score([[0.5, 0.9, 0.1], [0.9, 0.5, 0.7], [0.1, 0.2, 0.3]], birds) == pytest.approx(2 / 3)
    assert top_1_by_chance(birds) == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_encoders_that_tell_nothing_apart_find_nothing() -> None:
    two = pairs(["a", "b"], [0, 1], [0, 1])
    assert score([[1.0, 1.0], [1.0, 1.0]], two) == 0.0
    assert score([[float("nan")] * 2] * 2, two) == 0.0


def test_held_out_pairs_have_several_captions_an_image(shards: Path) -> None:
    split = Split.open(DataConfig(path=str(shards)), "test")
    held_out = HeldOut.of(split, 64, seed=1)
    assert held_out.images.shape == (12, 3, 64, 64)
    assert held_out.owners.tolist() == [image for image in range(12) for _ in range(3)]
    for image in range(12):
        own = [held_out.captions[place] for place in range(3 * image, 3 * image + 3)]
        assert own == list(split.sample(image).captions)
    assert set(held_out.classes.tolist()) == {0, 1, 2}


def peaked(*peaks: float) -> Tensor:
    """Maps of 2 × 2 regions whose largest weight is given, the others sharing the rest."""
    return torch.tensor([[[peak, (1 - peak) / 3], [(1 - peak) / 3] * 2] for peak in peaks])


def test_the_most_attended_words_have_the_highest_peaks_and_stand_there_once() -> None:
    maps = peaked(0.3, 0.9, 0.5, 0.7, 1.0)
    shown = most_attended(["a", "red", "a", "bird"], maps, most=3)
    assert [(word.word, round(word.peak, 3)) for word in shown] == [
        ("red", 3.6),
        ("bird", 2.8),
        ("a", 2.0),
    ]


class Scored(RetrievalReport):
    """A report whose scores are given."""

    def __init__(self, run: Path, patience: int | None, scores: dict[int, float]) -> None:
        self.run, self.patience, self.scores = run, patience, scores


def test_pretraining_ends_when_the_score_has_not_risen(tmp_path: Path) -> None:
    scores = {0: 0.0, 100: 0.2, 200: 0.3, 300: 0.3, 400: 0.29, 500: 0.4}
    report = Scored(tmp_path, 2, scores)
    assert [images for images in scores if report.finished(images)] == [400]
    assert not report.finished(450)  # no score: asked between two
    assert not any(Scored(tmp_path, 3, scores).finished(images) for images in scores)
    assert not any(Scored(tmp_path, None, scores).finished(images) for images in scores)


def weights_with(path: Path, **notes: str) -> SSAGANConfig:
    save_file({"weight": torch.zeros(1)}, path, notes)
    return SSAGANConfig(text_encoder=TextEncoderConfig(weights=str(path)))


def test_encoders_near_chance_are_warned_of(tmp_path: Path) -> None:
    near = weights_with(tmp_path / "a.safetensors", retrieval="0.027", retrieval_by_chance="0.004")
    assert "2.7% of held-out images found their captions, chance 0.4%" in warning_of_weak_text(near)
    far = weights_with(tmp_path / "b.safetensors", retrieval="0.2", retrieval_by_chance="0.004")
    assert warning_of_weak_text(far) == ""
    assert warning_of_weak_text(weights_with(tmp_path / "c.safetensors", format="pt")) == ""
    assert warning_of_weak_text(SSAGANConfig()) == ""


def test_a_gan_refuses_patience() -> None:
    with pytest.raises(ConfigurationError, match=r"engine\.patience .* a GAN has none"):
        check_engine(built("df_gan"), EngineConfig(patience=3), 1, None)


def test_pretraining_with_patience_keeps_the_best_and_has_nothing_more_to_do(
    shards: Path, tmp_path: Path
) -> None:
    small = (
        "system.resolution=64",
        "system.image_encoder.name=efficientnet_lite0",
        "system.learning_rate=0",  # no score rises
        "system.text_encoder.width=16",
        "system.text_encoder.embedding_width=12",
        *ENGINE,
    )
    every = ("engine.images=400", "engine.samples_every_images=4", "engine.patience=2")
    words = (*small, *every, f"data.path={shards}", f"runs={tmp_path}")
    first = run_task("pretrain", *words)
    assert "has not risen for 2 scores" in first.stdout, first.stderr
    run = only_run(tmp_path)
    rows = read_json_lines(run / "scores.jsonl")
    assert [row["images"] for row in rows] == [0, 4, 8]
    with safe_open(run / "text_encoder.safetensors", "pt") as opened:
        notes = opened.metadata()
    assert float(notes["retrieval"]) == pytest.approx(rows[0]["value"], abs=1e-5)
    again = run_task("pretrain", *words)
    assert "done" in again.stdout
    assert read_json_lines(run / "scores.jsonl") == rows
    assert read_json_lines(run / "metrics.jsonl")[-1]["samples"] == {
        "top_1_retrieval": rows[-1]["value"]
    }
