"""Names of layers that a file has beyond a network's own."""

from __future__ import annotations

import pytest

from t2i_hpc.models.text_encoder import layers_beyond

OWN = ("vision_model.encoder.layers.0.mlp.weight", "vision_model.post_layernorm.weight")


@pytest.mark.parametrize(
    ("name", "beyond"),
    [
        ("vision_model.encoder.layers.1.mlp.weight", True),
        ("clip.vision_model.encoder.layers.7.mlp.weight", True),
        ("encoder.layers.1.mlp.weight", True),
        ("text_model.encoder.layers.1.mlp.weight", False),
        ("cls.predictions.bias", False),
        ("embeddings.position_ids", False),
    ],
)
def test_layers_of_a_deeper_network_are_told_from_the_rest(name: str, beyond: bool) -> None:
    assert layers_beyond(OWN, [name]) == ([name] if beyond else [])
