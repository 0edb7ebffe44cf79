"""What a step is said to cost is what can be counted by hand."""

from __future__ import annotations

import resource

import torch
import torch.nn.functional as F

from t2i_hpc.models.text_encoder import LSTMTextEncoder
from t2i_hpc.training.cost import Captions, count_flops, count_parameters, count_step, random_batch
from t2i_hpc.training.metrics_log import peak_memory
from tests.support.toys import Toy


def test_all_phases_of_a_step_count_by_the_image() -> None:
    """Two networks with one matrix of 3 by 5, each forward and for the gradient of its weights."""
    toy = Toy()
    assert count_step(toy, Captions(max_tokens=2, vocabulary=9)) == 2 * 2 * (2 * 3 * 5)
    assert count_parameters(toy.modules["a"]) == 3 * 5 + 5 + 5


def test_what_is_frozen_is_not_trained() -> None:
    network = Toy().modules["a"]
    assert isinstance(network.rare, torch.nn.Parameter)
    network.rare.requires_grad_(False)
    assert count_parameters(network) == 3 * 5 + 5


def test_text_encoders_count() -> None:
    """torch's counter knows neither the LSTM nor the attention that are fused for CPUs."""
    encoder, batch = LSTMTextEncoder(20, 16, 12, 0.0), random_batch(4, 8, Captions(6, 20))
    assert batch.lengths.tolist() == [6, 5, 4, 3]
    gates, directions = 4 * 8, 2
    expected = 2 * directions * gates * (12 + 8) * sum(batch.lengths.tolist())
    with torch.no_grad():
        assert count_flops(lambda: encoder(batch.tokens, batch.lengths)) == expected
        query = torch.randn(2, 3, 5, 7)
        attention = 2 * (2 * 2 * 3 * 5 * 5 * 7)
        assert count_flops(lambda: F.scaled_dot_product_attention(query, query, query)) == attention


def test_memory_is_that_of_the_process() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = peak_memory(torch.device("cpu"))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert before * 1024 <= round(found * 1e9) <= after * 1024
