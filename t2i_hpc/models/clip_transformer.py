"""CLIP's two transformers (Radford et al., ICML 2021), block by block, from a local folder.

GALIP's recipe enters the image half in the middle: it reads features after some blocks, and sends
maps of its own through all of them with an additional token. So both halves are written out here;
their weights come from a folder of a CLIP in transformers' layout, which names them as
:func:`own_names` says. They are frozen: gradients pass through, none is kept for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.common.transfer import to_device
from t2i_hpc.models.text_encoder import TextEncoder, TextFeatures

# What CLIP's images are normalized by, color by color.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TOKENIZER = "tokenizer.json"
_FIRST, _LAST = "<|startoftext|>", "<|endoftext|>"
_ACTIVATIONS = ("quick_gelu", "gelu")
_NAMES = (
    (r"^(vision|text)_model\.(embeddings|encoder)\.", ""),
    (r"^(vision|text)_model\.", ""),
    (r"^(visual|text)_projection\.", "projection."),
    (r"^patch_embedding\.", "patches."),
    (r"^token_embedding\.", "tokens."),
    (r"^position_embedding\.weight$", "positions"),
    (r"^pre_layrnorm\.", "norm_in."),
    (r"^(post_layernorm|final_layer_norm)\.", "norm_out."),
    (r"\.self_attn\.([qkv]|out)_proj\.", r".attention.\1."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.mlp\.fc1\.", ".widen."),
    (r"\.mlp\.fc2\.", ".narrow."),
)


@dataclass(frozen=True)
class TransformerSizes:
    """Sizes of one half: width, blocks, heads, width inside the perceptrons, activation, ε."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    activation: str
    epsilon: float

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> TransformerSizes:
        """Read them off a half's part of config.json.

        Raises:
            ValueError: it does not say them, or another activation than CLIPs have.
        """
        try:
            sizes = cls(
                int(described["hidden_size"]),
                int(described["num_hidden_layers"]),
                int(described["num_attention_heads"]),
                int(described["intermediate_size"]),
                str(described.get("hidden_act", "quick_gelu")),
                float(described.get("layer_norm_eps", 1e-5)),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"config.json states no {error}") from error
        if sizes.activation not in _ACTIVATIONS or sizes.width % sizes.heads:
            raise ValueError(
                f"config.json describes another network than CLIP's (hidden_act "
                f"{sizes.activation!r}, {sizes.heads} heads of {sizes.width} features)"
            )
        return sizes


class CLIPBlock(nn.Module):
    """Attention and a perceptron, each behind a layer norm and beside a shortcut."""

    recomputable = True

    def __init__(self, sizes: TransformerSizes, causal: bool) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.causal, self.activation = sizes.heads, causal, sizes.activation
        self.norm1 = nn.LayerNorm(width, eps=sizes.epsilon)
        names = ("q", "k", "v", "out")
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.norm2 = nn.LayerNorm(width, eps=sizes.epsilon)
        self.widen = nn.Linear(width, sizes.feed_forward)
        self.narrow = nn.Linear(sizes.feed_forward, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T, W) to (B, T, W)."""
        tokens = tokens + self._attend(self.norm1(tokens))
        hidden: Tensor = self.widen(self.norm2(tokens))
        if self.activation == "quick_gelu":
            hidden = hidden * torch.sigmoid(1.702 * hidden)
        else:
            hidden = F.gelu(hidden)
        result: Tensor = tokens + self.narrow(hidden)
        return result

    def _attend(self, tokens: Tensor) -> Tensor:
        split = (*tokens.shape[:2], self.heads, -1)
        query, key, value = (
            self.attention[name](tokens).view(split).transpose(1, 2) for name in ("q", "k", "v")
        )
        found = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        result: Tensor = self.attention["out"](found.transpose(1, 2).flatten(2))
        return result


class CLIPVision(nn.Module):
    """The image half: a vision transformer.

    Args:
        described: ``vision_config`` of config.json.
        code_width: length of an image's code.

    Attributes:
        width: W, features of a patch.
        side: of the images that it reads, in pixels.
        grid: g, patches along a side.

    Raises:
        ValueError: the description is not of a CLIP.
    """

    def __init__(self, described: Mapping[str, Any], code_width: int) -> None:
        super().__init__()
        sizes = TransformerSizes.read(described)
        self.width = sizes.width
        self.side, patch = int(described["image_size"]), int(described["patch_size"])
        self.grid = self.side // patch
        self.class_embedding = nn.Parameter(torch.randn(sizes.width) * 0.02)
        self.patches = nn.Conv2d(3, sizes.width, patch, stride=patch, bias=False)
        self.positions = nn.Parameter(torch.randn(self.grid**2 + 1, sizes.width) * 0.02)
        self.norm_in = nn.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.layers = nn.ModuleList(CLIPBlock(sizes, causal=False) for _ in range(sizes.layers))
        self.norm_out = nn.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.projection = nn.Linear(sizes.width, code_width, bias=False)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    mean: Tensor
    std: Tensor

    def normalized(self, images: Tensor, pixels: str) -> Tensor:
        """Return images (B, 3, R, R) in [-1, 1] as the network reads them, (B, 3, side, side).

        Args:
            images: of any side.
            pixels: ``released`` scales colors to [½, 1] and resizes by the nearest pixel, as
                GALIP's code does (twice ``(x + 1) / 2``); ``clip`` scales to [0, 1] and resizes
                bicubically without aliases, as CLIP was trained.
        """
        side = (self.side, self.side)
        if pixels == "released":
            images = (F.interpolate(images * 0.5 + 0.5, size=side) + 1) * 0.5
        else:
            if images.shape[-2:] != side:
                images = F.interpolate(images, size=side, mode="bicubic", antialias=True)
            images = (images + 1) * 0.5
        return (images - self.mean) / self.std

    def forward(self, images: Tensor, levels: Collection[int]) -> tuple[Tensor, Tensor]:
        """Read images as :meth:`normalized` gives them.

        Args:
            images: (B, 3, side, side).
            levels: numbers of blocks, from 0, whose features are wanted, in order.

        Returns:
            Features of the patches (B, L, W, g, g), and codes (B, S).
        """
        tokens = self._begin(self.patches(images))
        found = []
        for number, block in enumerate(self.layers):
            tokens = block(tokens)
            if number in levels:
                found.append(self._as_map(tokens))
        code: Tensor = self.projection(self.norm_out(tokens[:, 0]))
        return torch.stack(found, dim=1), code

    def transform(self, maps: Tensor, prompts: Tensor) -> Tensor:
        """Send maps (B, W, g, g) through all blocks in place of patches; return such maps.

        Args:
            maps: what stands for the patches' embeddings.
            prompts: (B, P, W), a token more in each of P blocks from the second on, whose result
                is dropped.
        """
        tokens, most = self._begin(maps), prompts.shape[1]
        for number, block in enumerate(self.layers):
            if 1 <= number <= most:
                more = torch.cat([tokens, prompts[:, number - 1, None].to(tokens.dtype)], dim=1)
                tokens = block(more)[:, :-1]
            else:
                tokens = block(tokens)
        return self._as_map(tokens)

    def _begin(self, maps: Tensor) -> Tensor:
        """Return the first tokens (B, 1 + g², W) of maps (B, W, g, g)."""
        patches = maps.flatten(2).transpose(1, 2)
        # shape[0], not len(): len() of a tensor fixes the batch of an exported graph.
        first = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        tokens: Tensor = self.norm_in(torch.cat([first, patches], dim=1) + self.positions)
        return tokens

    def _as_map(self, tokens: Tensor) -> Tensor:
        """Return the patches' tokens as (B, W, g, g)."""
        patches = tokens[:, 1:].transpose(1, 2)
        return patches.reshape(tokens.shape[0], self.width, self.grid, self.grid)


class CLIPTextEncoder(TextEncoder):
    """The text half. A caption's code is its sentence; tokens are those of CLIP's tokenizer.

    Args:
        described: ``text_config`` of config.json.
        width: length of a caption's code.
        first, last: numbers of the tokens around a caption.

    Attributes:
        max_tokens: of a caption, without those two.

    Raises:
        ValueError: the description is not of a CLIP.
    """

    def __init__(self, described: Mapping[str, Any], width: int, first: int, last: int) -> None:
        super().__init__()
        sizes = TransformerSizes.read(described)
        self.width, self.first, self.last = width, first, last
        self.max_tokens = int(described["max_position_embeddings"]) - 2
        self.tokens = nn.Embedding(int(described["vocab_size"]), sizes.width)
        self.positions = nn.Parameter(torch.randn(self.max_tokens + 2, sizes.width) * 0.01)
        self.layers = nn.ModuleList(CLIPBlock(sizes, causal=True) for _ in range(sizes.layers))
        self.norm_out = nn.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.projection = nn.Linear(sizes.width, width, bias=False)

    def forward(self, tokens: Tensor, lengths: Tensor) -> TextFeatures:
        """Encode tokens int64 (B, T) of `lengths` int64 (B,), 1 ≤ length ≤ T ≤ max_tokens."""
        lengths = to_device(lengths, tokens.device)[:, None]
        place = torch.arange(tokens.shape[1] + 2, device=tokens.device)[None, :]
        framed = F.pad(tokens, (1, 1))
        framed = torch.where(place == 0, self.first, framed)
        framed = torch.where(place == lengths + 1, self.last, framed)
        # Attention looks back alone, so what stands behind a caption's last token is not seen.
        hidden = self.tokens(framed) + self.positions[: framed.shape[1]]
        for block in self.layers:
            hidden = block(hidden)
        projected = self.projection(self.norm_out(hidden))
        sentence = projected.gather(1, (lengths + 1)[:, :, None].expand(-1, -1, self.width))
        is_word = place[:, 1:-1] <= lengths
        words = projected[:, 1:-1] * is_word[:, :, None]
        return TextFeatures(words.transpose(1, 2), sentence[:, 0])


def own_names(theirs: Mapping[str, Tensor], half: str) -> dict[str, Tensor]:
    """Return a half's tensors of transformers' CLIPModel under our names.

    Args:
        theirs: the whole model's, or more.
        half: ``vision`` or ``text``.
    """
    projection = {"vision": "visual_projection.", "text": "text_projection."}[half]
    wanted = [name for name in theirs if name.startswith((f"{half}_model.", projection))]
    return {_own_name(n): theirs[n] for n in wanted if not n.endswith("position_ids")}


def _own_name(name: str) -> str:
    for pattern, own in _NAMES:
        name = re.sub(pattern, own, name)
    return name


def special_tokens(tokenizer: Path) -> tuple[int, int]:
    """Return the numbers of the tokens around a caption, as tokenizer.json has them.

    Raises:
        OSError, ValueError: it cannot be read, or is not CLIP's.
    """
    content = json.loads(tokenizer.read_bytes())
    try:
        numbers = dict(content["model"]["vocab"])
        numbers |= {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
        return int(numbers[_FIRST]), int(numbers[_LAST])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{tokenizer} is not CLIP's: it has no {_FIRST} and {_LAST}") from error
