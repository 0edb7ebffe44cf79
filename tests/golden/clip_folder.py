"""The CLIP of the case ``galip``, which OpenAI's code computed, as transformers lays it out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.golden.case import case
from tests.support.clip import TOKENS, clip_tokenizer

TEXT: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1}
TEXT |= {"intermediate_size": 256, "max_position_embeddings": 16, "vocab_size": 60}
VISION: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 12, "image_size": 224}
VISION |= {"num_attention_heads": 2, "intermediate_size": 512, "patch_size": 32}
_NAMES = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def tensors() -> dict[str, Tensor]:
    """Return the tensors of both halves under transformers' names."""
    golden = case("galip")
    found: dict[str, Tensor] = {}
    for theirs, value in golden.weights("clip", gain=golden.facts["gain"]).items():
        name = theirs
        for pattern, other in _NAMES:
            name = re.sub(pattern, other, name)
        if ".attn.in_proj_" in name:
            block, kind = name.split(".attn.in_proj_")
            parts = zip("qkv", value.chunk(3), strict=True)
            found |= {f"{block}.self_attn.{part}_proj.{kind}": one for part, one in parts}
        else:
            found[name] = value.T if name.endswith("_projection.weight") else value
    return found


def write_golden_clip(folder: Path) -> Path:
    """Write configuration, a tokenizer of whole words, and weights; return the folder."""
    folder.mkdir(parents=True)
    described = {
        "model_type": "clip",
        "projection_dim": case("galip").facts["cond"],
        "text_config": TEXT,
        "vision_config": VISION,
    }
    more = tuple(f"word{number}" for number in range(TEXT["vocab_size"] - len(TOKENS)))
    words = (*TOKENS[:-2], *more, *TOKENS[-2:])
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "tokenizer.json").write_text(json.dumps(clip_tokenizer(words)))
    contiguous = {name: value.contiguous() for name, value in tensors().items()}
    save_file(contiguous, folder / "model.safetensors")
    return folder
