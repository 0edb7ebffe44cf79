"""A run's CLIP score: each image with the caption that it was made of, in any number of shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.evaluation import METRICS
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.evaluation.build import comparisons
from t2i_hpc.evaluation.clip_score import CLIP
from t2i_hpc.evaluation.comparison import Comparison
from t2i_hpc.evaluation.detectors import build_detector
from t2i_hpc.sampling.loading import load_run
from t2i_hpc.sampling.rules import PLAIN, caption_of
from tests.commands.trained import make_run
from tests.evaluation.conftest import some_images
from tests.evaluation.pretrained import save_clip

IMAGES = 10
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"), seed=5)


@pytest.fixture
def run(shards: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", shards, checkpoints=(200,))


def settings(*words: str) -> EvaluateConfig:
    usual = (
        "evaluation.detector=efficientnet_lite0",
        "evaluation.metrics=[clip_score]",
        f"evaluation.images={IMAGES}",
        "evaluation.batch_size=4",
    )
    return compose_config("evaluate", [*usual, *words], EvaluateConfig)


def compared(config: EvaluateConfig) -> Comparison:
    (comparison,) = comparisons(config)
    return comparison


def score(config: EvaluateConfig) -> dict[str, Any]:
    comparison = compared(config)
    detector = build_detector(config.evaluation, CPU)
    for shard in reversed(range(comparison.sharding.shards)):
        comparison.compute([shard], detector)
    (row,) = comparison.score()
    return row


def _ratings(run: Path, folder: Path, seed: int) -> Iterator[float]:
    """Rate images with their captions, in the batches of the evaluation."""
    trained = load_run(run, "200", device=CPU)
    clip, split = CLIP(str(folder), CPU), trained.split("train")
    for first in range(0, IMAGES, 4):
        numbers = range(first, first + 4)
        captions = [caption_of(split, number, seed, PLAIN) for number in numbers]
        codes = clip.captions(captions)
        yield from clip.scores(trained.generate_numbers(numbers, seed, "train"), codes)


@pytest.mark.parametrize("count", [1, 3])
def test_images_are_rated_with_the_captions_they_were_made_of(
    run: Path, folder: Path, count: int
) -> None:
    words = (f"run={run}", f"evaluation.clip={folder}", f"evaluation.shards={count}")
    row = score(settings(*words, "evaluation.split=train", "evaluation.seed=5"))
    ratings = np.array(list(_ratings(run, folder, 5))[:IMAGES])
    assert (row["metric"], row["better"], row["n"], row["n_real"]) == (
        "CLIP score",
        "higher",
        IMAGES,
        0,
    )
    assert row["value"] == pytest.approx(ratings.mean(), rel=1e-6)
    assert row["std"] == pytest.approx(ratings.std(ddof=1) / IMAGES**0.5, rel=1e-6)
    assert np.ptp(ratings) > 1
    others = np.array(list(_ratings(run, folder, 6))[:IMAGES])
    assert row["value"] != pytest.approx(others.mean(), rel=1e-3)
    assert not (run.parent / "real-statistics").exists()


def test_the_protocol_knows_the_network(run: Path, folder: Path, tmp_path: Path) -> None:
    other = save_clip(tmp_path / "other", seed=2)
    protocols = [
        compared(settings(f"run={run}", f"evaluation.clip={given}")).protocol
        for given in (folder, other)
    ]
    moved = {name for name in METRICS if len({each.hash_of(name) for each in protocols}) == 2}
    assert moved == {"clip_score"}
    assert protocols[0].generated_hash == protocols[1].generated_hash
    without = compared(settings(f"run={run}", "evaluation.metrics=[fid]")).protocol
    assert without.clip == ""


def test_what_cannot_be_rated_is_refused(run: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"evaluation\.clip is empty"):
        compared(settings(f"run={run}"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(some_images(IMAGES, 16, seed=1)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pictures / f"{number}.png")
    words = (f"images={pictures}", f"reference={pictures}", f"evaluation.clip={folder}")
    with pytest.raises(EvaluationError, match="the CLIP score needs the captions"):
        compared(settings(*words))
