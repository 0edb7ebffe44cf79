"""A folder of a tiny CLIP of 7 × 7 patches, as transformers lays it out, written without it."""

from __future__ import annotations

import getpass
import json
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CODE, WIDTH, FEED_FORWARD, LAYERS, WORDS = 16, 16, 24, 3, 24
# The words of tests/support/data.py, and CLIP's two special tokens: 20 in all.
_WORDS = """
! [UNK] a an on the one of is in red green blue yellow black circle square triangle
<|startoftext|> <|endoftext|>
"""
TOKENS = tuple(_WORDS.split())
_NARROW: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "intermediate_size": FEED_FORWARD,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": CODE,
    "text_config": {
        **_NARROW,
        "num_hidden_layers": 1,
        "max_position_embeddings": WORDS,
        "vocab_size": len(TOKENS),
        "bos_token_id": len(TOKENS) - 2,
        "eos_token_id": len(TOKENS) - 1,
    },
    "vision_config": {
        **_NARROW,
        "num_hidden_layers": LAYERS,
        "image_size": 28,
        "patch_size": 4,
    },
}


@cache
def tiny_clip() -> Path:
    """Return a folder of the same content in every process, made where it is missing."""
    content = zlib.crc32(Path(__file__).read_bytes())
    name = f"t2i_hpc-tiny-clip-{getpass.getuser()}-{content:08x}"
    folder = Path(tempfile.gettempdir()) / name
    if not folder.is_dir():
        made = write_clip(Path(tempfile.mkdtemp(dir=folder.parent)))
        try:
            made.replace(folder)
        except OSError:  # another process was first
            shutil.rmtree(made)
    return folder


def write_clip(folder: Path, seed: int = 0) -> Path:
    """Write configuration, tokenizer and random weights; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(clip_tokenizer(TOKENS)))
    save_file(_weights(torch.Generator().manual_seed(seed)), folder / "model.safetensors")
    return folder


def clip_tokenizer(tokens: Sequence[str]) -> dict[str, Any]:
    """Return a tokenizer.json of whole words, of which the last two are CLIP's special tokens."""
    special = [
        {"id": number, "content": tokens[number], "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number in (len(tokens) - 2, len(tokens) - 1)
    ]
    vocabulary = {word: number for number, word in enumerate(tokens)}
    return {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }


def _weights(draw: torch.Generator) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (len(TOKENS), WIDTH),
        "text_model.embeddings.position_embedding.weight": (WORDS, WIDTH),
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 4, 4),
        "vision_model.embeddings.position_embedding.weight": (50, WIDTH),
        "text_projection.weight": (CODE, WIDTH),
        "visual_projection.weight": (CODE, WIDTH),
    }
    norms = ["text_model.final_layer_norm", "vision_model.pre_layrnorm"]
    norms.append("vision_model.post_layernorm")
    for half, count in (("text", 1), ("vision", LAYERS)):
        for number in range(count):
            block = f"{half}_model.encoder.layers.{number}"
            norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
            for name in ("q", "k", "v", "out"):
                shapes |= _linear(f"{block}.self_attn.{name}_proj", WIDTH, WIDTH)
            shapes |= _linear(f"{block}.mlp.fc1", WIDTH, FEED_FORWARD)
            shapes |= _linear(f"{block}.mlp.fc2", FEED_FORWARD, WIDTH)
    tensors = {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    for name in norms:
        tensors[f"{name}.weight"] = 1 + 0.1 * torch.randn(WIDTH, generator=draw)
        tensors[f"{name}.bias"] = 0.1 * torch.randn(WIDTH, generator=draw)
    return tensors


def _linear(name: str, before: int, after: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}
