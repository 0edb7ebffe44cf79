"""Folders of tiny networks with random weights, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

WORDS = 12  # tokens that the tiny CLIP reads
SIZE = 28
WIDTH = 8
_FIRST, _LAST = "<|startoftext|>", "<|endoftext|>"
_LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
_NARROW: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_dinov2(folder: Path) -> Path:
    """Write a DINOv2 of 8 features that was made for other than 224 px; return its folder."""
    torch.manual_seed(1)
    config = Dinov2Config(**{**_NARROW, "hidden_size": WIDTH}, image_size=56, patch_size=28)
    network = Dinov2Model(config)
    _enliven(network)
    network.save_pretrained(folder)
    return folder


def save_clip(folder: Path, seed: int = 1) -> Path:
    """Write a CLIP that reads letters, and its tokenizer; return its folder."""
    torch.manual_seed(seed)
    vocabulary = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "re", "red</w>"]
    numbers = {token: number for number, token in enumerate([*vocabulary, _FIRST, _LAST])}
    merges: Any = [("r", "e"), ("re", "d</w>")]  # the library's type says text, its code pairs
    CLIPTokenizer(vocab=numbers, merges=merges).save_pretrained(folder)
    narrow = {**_NARROW, "intermediate_size": 16}
    text = {
        "vocab_size": len(numbers),
        "max_position_embeddings": WORDS,
        "bos_token_id": numbers[_FIRST],
        "eos_token_id": numbers[_LAST],
    }
    config = CLIPConfig(
        text_config={**narrow, **text},
        vision_config={**narrow, "image_size": SIZE, "patch_size": 14},
        projection_dim=WIDTH,
    )
    network = CLIPModel(config)
    _enliven(network)
    network.save_pretrained(folder)
    return folder


def _enliven(network: torch.nn.Module) -> None:
    """Give all weights a size at which outputs depend on inputs plainly."""
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value) * 0.2)
