"""Dropout that any number of ranks does alike; over real ranks in test_every_system.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2i_hpc.models import global_batch
from t2i_hpc.models.global_batch import Dropout, ExactDropout, drop
from t2i_hpc.training.world import World
from tests.support.ranks import run_ranks


def test_a_share_is_dropped_and_the_rest_enlarged() -> None:
    torch.manual_seed(1)
    values = torch.ones(100, 100, requires_grad=True)
    dropped = drop(values, 0.3)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())


def test_nothing_is_dropped_in_evaluation() -> None:
    values = torch.ones(4, 5)
    assert Dropout(0.5).eval()(values) is values
    with ExactDropout():
        assert F.dropout(values, 0.5, training=False) is values


def test_low_precision_stays() -> None:
    assert drop(torch.ones(4, 5, dtype=torch.bfloat16), 0.5).dtype == torch.bfloat16


def draw(world: World) -> torch.Tensor:
    """Drop on this rank's rows of a batch of 8, in three ways."""
    torch.manual_seed(3)
    share = 8 // world.size
    values = torch.ones(share, 6)
    heads = torch.ones(share, 2, 3, 4)
    with ExactDropout():
        attention = F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5)
        inside = nn.Dropout(0.5)(values)
    return torch.cat([Dropout(0.5)(values), inside, attention.flatten(1)], 1)


def test_two_ranks_drop_what_one_does(tmp_path: Path) -> None:
    found = []
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        run_ranks(draw, size, folder)
        found.append(torch.cat([torch.load(folder / f"{rank}.pt") for rank in range(size)]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0][:4], found[0][4:])


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": (torch.arange(5) < 3)[None]},
        {"attn_mask": -torch.arange(5.0)[None]},
    ],
)
def test_attention_is_torchs_but_for_what_it_drops(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(global_batch, "drop", lambda values, _: values)
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    with ExactDropout():
        ours = F.scaled_dot_product_attention(query, key, value, dropout_p=0.5, **asked)
    theirs = F.scaled_dot_product_attention(query, key, value, **asked)
    torch.testing.assert_close(ours, theirs)
