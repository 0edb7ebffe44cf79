"""Several ranks train as one does (real processes over gloo)."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from t2i_hpc.engine.checkpoint import list_checkpoints
from tests.support.training import losses_of, only_run, train_tiny

DAMSM = (
    "system.damsm.weight=0.1",
    "system.image_encoder.name=efficientnet_lite0",
    "system.text_encoder.dropout=0",
)


def assert_near(first: list[dict[str, float]], second: list[dict[str, float]]) -> None:
    assert len(first) == len(second)
    for step, (one, two) in enumerate(zip(first, second, strict=True)):
        for name in one:
            allowed = 1e-4 * max(abs(one[name]), 1.0)  # logits and losses are of order 1
            assert abs(one[name] - two[name]) <= allowed, (step, name, one[name], two[name])


@pytest.mark.parametrize(
    ("world", "words"),
    [
        (2, ("engine.images=20",)),
        (4, ("engine.images=20", "system.mismatch=roll")),
        (2, ("engine.images=12", *DAMSM)),
        (2, ("engine.images=12", *DAMSM, "system.text_encoder.training=joint")),
        (2, ("engine.images=12", *DAMSM, "system.text_encoder.training=damsm")),
        (
            2,
            (
                "engine.images=12",
                *DAMSM,
                "system.text_encoder.training=joint",
                "system.text_encoder.clip=0.25",
                "system.discriminator_schedule=merged",
                "system.penalty_norm=sum",
                "system.damsm.root=true",
                "system.damsm.chunk=3",
            ),
        ),
        (2, ("engine.images=12", "system.block=affine")),
    ],
    ids=["2", "4-roll", "2-damsm", "2-joint", "2-damsm-trained", "2-merged", "2-affine"],
)
def test_losses_equal_those_of_one_rank(
    world: int, words: tuple[str, ...], shards: Path, tmp_path: Path
) -> None:
    train_tiny(shards, tmp_path / "one", *words)
    train_tiny(shards, tmp_path / "many", *words, task=("launch", f"cluster.processes={world}"))
    one, many = only_run(tmp_path / "one"), only_run(tmp_path / "many")
    assert one.name == many.name
    assert_near(losses_of(one), losses_of(many))


def test_a_run_of_two_ranks_goes_on_with_one(shards: Path, tmp_path: Path) -> None:
    train_tiny(shards, tmp_path / "a", "engine.images=12", task=("launch", "cluster.processes=2"))
    again = train_tiny(shards, tmp_path / "a", "engine.images=20")
    assert "resuming at step 3" in again.stdout
    train_tiny(shards, tmp_path / "b", "engine.images=20")
    run, straight = only_run(tmp_path / "a"), only_run(tmp_path / "b")
    assert list_checkpoints(run)[-1] == 20
    assert_near(losses_of(straight), losses_of(run))


def test_two_ranks_twice_are_equal_to_the_bit(shards: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tiny(
            shards, tmp_path / name, "engine.images=12", task=("launch", "cluster.processes=2")
        )
    first, second = (
        load_file(only_run(tmp_path / name) / f"checkpoints/{12:010d}/weights.safetensors")
        for name in ("a", "b")
    )
    assert all(bool((first[key] == second[key]).all()) for key in first)


def test_a_batch_that_the_world_does_not_divide_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cannot be divided by 3 ranks"):
        train_tiny(shards, tmp_path, task=("launch", "cluster.processes=3"))
