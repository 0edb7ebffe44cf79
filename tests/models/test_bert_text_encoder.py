"""BERT as a text encoder, against transformers' own use of a real small one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i_hpc.data.captions import WordPieces
from t2i_hpc.models.text_encoder import BERTTextEncoder, new_bert, pretrained_bert
from tests.support.bert import minilm_folder

CAPTIONS = ("a small red bird", "this bird has a yellow-ish belly, and wingbars!", "bird")


def encode(pieces: WordPieces, width: int) -> tuple[Tensor, Tensor]:
    rows = [pieces.encode(text) for text in CAPTIONS]
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, numbers in zip(tokens, rows, strict=True):
        row[: len(numbers)] = torch.tensor(numbers)
    return tokens, torch.tensor([len(numbers) for numbers in rows])


def small(pooling: str = "mean") -> BERTTextEncoder:
    torch.manual_seed(0)
    bert, first, last = new_bert(20, 16, layers=2, heads=4, feed_forward=32, dropout=0.0)
    return BERTTextEncoder(bert, 12, first=first, last=last, pooling=pooling).eval()


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_real_weights_give_what_transformers_gives(pooling: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = minilm_folder()
    pieces = WordPieces.load(folder / "tokenizer.json")
    first, last = (pieces.words.index(word) for word in ("[CLS]", "[SEP]"))
    bert = pretrained_bert(folder)
    ours = BERTTextEncoder(bert, 384, first=first, last=last, pooling=pooling).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        features = ours(*encode(pieces, 20))
        theirs = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    sentence = (theirs * mask).sum(1) / mask.sum(1) if pooling == "mean" else theirs[:, 0]
    torch.testing.assert_close(features.sentence, sentence, atol=1e-5, rtol=1e-4)
    for row, length in enumerate(encode(pieces, 20)[1].tolist()):
        torch.testing.assert_close(
            features.words[row, :, :length].t(), theirs[row, 1 : length + 1], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_caption_does_not_depend_on_padding_or_neighbors(pooling: str) -> None:
    encoder = small(pooling)
    tokens = torch.tensor([[3, 4, 5, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    together = encoder(tokens, torch.tensor([3, 6]))
    alone = encoder(tokens[:1, :3], torch.tensor([3]))
    torch.testing.assert_close(together.sentence[:1], alone.sentence)
    torch.testing.assert_close(together.words[:1, :, :3], alone.words)
    assert together.words.shape == (2, 12, 6)
    assert not together.words[0, :, 3:].any()


def test_every_parameter_gets_a_gradient() -> None:
    encoder = small()
    features = encoder(torch.tensor([[3, 4]]), torch.tensor([2]))
    (features.words.square().sum() + features.sentence.sum()).backward()
    without = [name for name, value in encoder.named_parameters() if value.grad is None]
    assert without == []


def test_another_folder_is_no_bert(tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError)):
        pretrained_bert(tmp_path)
