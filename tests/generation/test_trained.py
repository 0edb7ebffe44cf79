"""A run as a source of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t2i_hpc.config.tasks import GenerateConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.generate import choose_captions
from t2i_hpc.generation.captions import encode_captions
from t2i_hpc.generation.trained import TrainedRun, to_uint8
from tests.support.training import only_run, train_tiny


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    runs = tmp_path_factory.mktemp("runs")
    train_tiny(shards, runs, "engine.images=8")
    return TrainedRun.open(only_run(runs), "latest", torch.device("cpu"))


def test_image_i_depends_on_seed_and_i_alone(trained: TrainedRun) -> None:
    whole = trained.draw(range(10), 1, "train")
    assert whole.shape == (10, 3, 64, 64)
    assert whole.dtype == torch.uint8
    part = trained.draw(range(6, 10), 1, "train")
    assert int((part.int() - whole[6:].int()).abs().max()) <= 1
    assert not torch.equal(trained.draw(range(10), 2, "train"), whole)


def test_numbers_beyond_the_split_begin_again_with_new_noise(trained: TrainedRun) -> None:
    count = trained.held_out.count
    first, again = (
        trained.draw(range(1), 1, "test"),
        trained.draw(range(count, count + 1), 1, "test"),
    )
    assert not torch.equal(first, again)


def test_what_is_opened_says_what_it_is(trained: TrainedRun) -> None:
    assert trained.images_seen == 8
    assert trained.resolution == 64
    assert len(trained.checkpoint_sha256) == 64
    assert TrainedRun.checkpoints(trained.run) == [0, 8]


def test_images_are_rounded_and_clamped() -> None:
    values = torch.tensor([-1.2, -1.0, -0.5 / 127.5, 0.0, 0.5 / 127.5, 1.0, 1.2])
    assert to_uint8(values).tolist() == [0, 0, 127, 128, 128, 255, 255]


def test_a_caption_means_the_same_wherever_it_stands() -> None:
    vocabulary = Vocabulary.from_captions(["a b c d e f g h"])
    captions = ["a b", "a b c d e f g h", "unknown", "h g f e d c b a"]
    tokens, lengths = encode_captions(captions, vocabulary, 4, seed=1)
    assert tokens.shape == (4, 4)
    assert lengths.tolist() == [2, 4, 1, 4]
    again, _ = encode_captions(captions[::-1], vocabulary, 4, seed=1)
    assert torch.equal(again.flip(0), tokens)
    assert tokens[2].tolist() == [0, 0, 0, 0]


def test_unknown_words_are_reported(
    trained: TrainedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GenerateConfig(captions=["a red zeppelin"])
    assert choose_captions(config, trained.held_out) == ["a red zeppelin"]
    assert "zeppelin" in capsys.readouterr().err
    assert len(choose_captions(GenerateConfig(rows=5), trained.held_out)) == 5
