"""CLIP scores are those of transformers' own preprocessing, tokenizer and network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip import CLIPImageProcessor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.evaluation.clip_score import CLIP, RatingSums, clip_identity, clip_score
from t2i_hpc.evaluation.collectors import FeatureBatch
from t2i_hpc.runs.partial_statistics import Arrays
from tests.evaluation.conftest import some_images
from tests.evaluation.pretrained import SIZE, WORDS, save_clip, save_dinov2

CPU = torch.device("cpu")
CAPTIONS = ("a red bird", "Red", "blue", "ten tiny letters more than it reads", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_clip(tmp_path_factory.mktemp("clip"))


def _cosines(folder: Path, images: Tensor, captions: Sequence[str]) -> Tensor:
    """Return cosines of each pair by the two halves of the network, one caption at a time."""
    network = CLIPModel.from_pretrained(folder)
    tokenize = AutoTokenizer.from_pretrained(folder)
    prepare = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE)
    with torch.no_grad():
        pixels = prepare(list(images), return_tensors="pt")["pixel_values"]
        codes = network.visual_projection(network.vision_model(pixels).pooler_output)
        sentences = []
        for caption in captions:
            words = tokenize(caption, return_tensors="pt", truncation=True, max_length=WORDS)
            pooled = network.text_model(**words).pooler_output
            sentences.append(network.text_projection(pooled))
        return torch.cosine_similarity(codes, torch.cat(sentences))


@pytest.mark.parametrize("size", [16, SIZE, 96])
def test_scores_are_a_hundred_cosines_but_never_negative(folder: Path, size: int) -> None:
    images = some_images(10, size, seed=size)
    captions = CAPTIONS * 2
    clip = CLIP(str(folder), CPU)
    scores = clip.scores(images, clip.captions(captions))
    expected = 100 * _cosines(folder, images, captions).clamp_min(0).double().numpy()
    assert scores.shape == (10,)
    assert scores.dtype == np.float64
    # Resizing may round a pixel to the level beside the library's.
    np.testing.assert_allclose(scores, expected, atol=1e-4 if size == SIZE else 0.3)
    assert np.ptp(scores) > 5


def test_some_scores_would_be_negative(folder: Path) -> None:
    images, captions = some_images(10, SIZE, seed=7), CAPTIONS * 2
    negative = (_cosines(folder, images, captions) < 0).numpy()
    clip = CLIP(str(folder), CPU)
    scores = clip.scores(images, clip.captions(captions))
    assert 0 < negative.sum() < len(negative)
    assert (scores[negative] == 0).all()
    assert (scores[~negative] > 0).all()


def test_mean_and_standard_error_do_not_depend_on_the_division() -> None:
    ratings = np.random.default_rng(1).uniform(0, 40, 53)

    def sums(start: int, stop: int) -> Arrays:
        rated = RatingSums(lambda numbers, _: ratings[numbers.start : numbers.stop])
        for first in range(start, stop, 4):
            nothing = torch.zeros(0)
            rated.add(FeatureBatch(range(first, min(first + 4, stop)), nothing, nothing, nothing))
        return rated.arrays()

    shards = [sums(0, 20), sums(20, 36), sums(36, 53)]
    merged = {name: np.sum([shard[name] for shard in shards]) for name in shards[0]}
    mean, error = clip_score(merged)
    assert mean == pytest.approx(ratings.mean(), rel=1e-12)
    assert error == pytest.approx(ratings.std(ddof=1) / 53**0.5, rel=1e-9)
    assert clip_score(sums(0, 53)) == pytest.approx((mean, error), rel=1e-9)


def test_equal_ratings_have_no_error() -> None:
    sums = RatingSums(lambda numbers, _: np.full(len(numbers), 0.1))
    nothing = torch.zeros(0)
    sums.add(FeatureBatch(range(3), nothing, nothing, nothing))
    assert clip_score(sums.arrays()) == pytest.approx((0.1, 0.0), abs=1e-8)


def test_the_identity_holds_the_hashes_of_both_files(folder: Path, tmp_path: Path) -> None:
    identity = clip_identity(str(folder))
    for name in ("model.safetensors", "tokenizer.json"):
        assert sha256_of_file(folder / name) in identity
    assert clip_identity(str(folder / "model.safetensors")) == identity
    assert clip_identity(str(save_clip(tmp_path / "other", seed=2))) != identity


def test_what_is_no_folder_of_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"evaluation\.clip is empty: .*tokenizer\.json"):
        clip_identity("")
    save_dinov2(tmp_path)
    with pytest.raises(EvaluationError, match=r"tokenizer\.json is missing"):
        clip_identity(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EvaluationError, match="network of the kind 'dinov2'"):
        clip_identity(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{}", "long"])
def test_another_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    path = save_clip(tmp_path) / "tokenizer.json"
    longer = path.read_text().replace('"re": 52', '"re": 52, "more": 56')
    path.write_text(longer if content == "long" else content)
    with pytest.raises(EvaluationError, match=r"tokenizer\.json is damaged or another network's"):
        CLIP(str(tmp_path), CPU)
