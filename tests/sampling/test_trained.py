"""A run as a source of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.tasks import GenerateConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.evaluation.image_sources import generation_rules
from t2i_hpc.evaluation.r_precision import damsm_encoders
from t2i_hpc.models.text_encoder import LSTMTextEncoder
from t2i_hpc.sampling.loading import load_run
from t2i_hpc.sampling.request import asked_rows, encode_captions, expand, read_rows, rows_of_split
from t2i_hpc.sampling.rules import to_uint8
from t2i_hpc.sampling.trained_run import TrainedRun
from tests.commands.trained import write_encoders
from tests.support.data import captions_of
from tests.support.training import only_run, train_tiny


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    runs = tmp_path_factory.mktemp("runs")
    train_tiny(shards, runs, "engine.images=8")
    return load_run(only_run(runs), device="cpu")


def test_image_i_depends_on_seed_and_i_alone(trained: TrainedRun) -> None:
    whole = trained.generate_numbers(range(10), 1, "train")
    assert whole.shape == (10, 3, 64, 64)
    assert whole.dtype == torch.uint8
    some = trained.generate_numbers(range(6, 10), 1, "train")
    assert int((some.int() - whole[6:].int()).abs().max()) <= 1
    assert not torch.equal(trained.generate_numbers(range(10), 2, "train"), whole)


def test_r_precision_reads_the_tokens_that_an_image_was_made_of(
    trained: TrainedRun,
) -> None:
    text, image = (word.split("=")[1] for word in write_encoders(trained.run))
    settings = EvaluationConfig(text_encoder=text, image_encoder=image, seed=7, caption_tokens=3)
    rules = generation_rules(settings)
    captions = captions_of(0)[:2]
    tokens, lengths = trained.tokenize(captions, settings.seed, rules)
    assert (tokens.shape, lengths.tolist()) == ((2, 3), [3, 3])
    assert not torch.equal(trained.tokenize(captions, trained.config.seed, rules)[0], tokens)
    encoder = LSTMTextEncoder(trained.held_out.vocabulary.size, 8, 6).eval()
    encoder.load_state_dict(load_file(text))
    sentences = damsm_encoders(settings, trained, rules).sentences(captions)
    torch.testing.assert_close(sentences, encoder(tokens, lengths).sentence)


def test_numbers_beyond_the_split_begin_again_with_new_noise(trained: TrainedRun) -> None:
    count = trained.held_out.count
    first, again = (
        trained.generate_numbers(range(1), 1, "test"),
        trained.generate_numbers(range(count, count + 1), 1, "test"),
    )
    assert not torch.equal(first, again)


def test_what_is_opened_says_what_it_is(trained: TrainedRun) -> None:
    assert trained.images_seen == 8
    assert len(trained.checkpoint_sha256) == 64


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


def test_rows_say_what_is_read_of_them(trained: TrainedRun) -> None:
    long = "a red circle on a " + "light " * 20 + "ground"
    asked = ["a {red,blue} zeppelin", long]
    read = read_rows(expand(asked), trained.vocabulary, trained.config.data.max_tokens, 1)
    assert [row.unknown for row in read] == [["zeppelin"], ["zeppelin"], []]
    assert read[0].words == ["a", "red"]
    notes = dict.fromkeys(note for row in read for note in row.notes)
    assert next(iter(notes)) == f"unknown words left out of {asked[0]!r}: zeppelin"
    assert len(notes) == 2
    assert len(read[2].words) == trained.config.data.max_tokens
    assert read[2].left_out == len(long.split()) - trained.config.data.max_tokens
    with pytest.raises(ConfigurationError, match="no word of the caption 'qwertz'"):
        read_rows(expand(["qwertz"]), trained.vocabulary, 18, 1)


def test_captions_come_from_the_words_and_a_file(trained: TrainedRun, tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("\ufeffa {red,blue} circle\n\n  a\u2028square \n", encoding="utf-8")
    config = GenerateConfig(captions=["first"], captions_file=str(path))
    rows = asked_rows(config)
    assert [row.caption for row in rows] == [
        "first",
        "a red circle",
        "a blue circle",
        "a square",
    ]
    assert asked_rows(GenerateConfig()) == []
    assert len(rows_of_split(trained.held_out, GenerateConfig(rows=5))) == 5


@pytest.mark.parametrize("content", [None, b"\n \n", b"\xff\xfe\xff"])
def test_a_captions_file_that_is_none_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"captions_file=.*captions\.txt"):
        asked_rows(GenerateConfig(captions_file=str(path)))
