"""Several ranks train as one does (real processes over gloo).

In float64 five steps of any world are the same to many digits, weights and all. In float32
rounding differs with the order of sums, and Adam makes steps of it where the true gradient is
nothing: the biases of convolutions before a batch norm, which takes them away again. The float64
runs tell which these are, since there they stay where they were; they and the running means that
follow them are not compared in float32.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.runs.layout import list_checkpoints
from tests.support.ranks import (
    Case,
    Outcome,
    assert_equal_bits,
    loss_differences,
    train_cases,
    weight_differences,
    weights_without_gradient,
)
from tests.support.training import losses_of, only_run, train_tiny

DROPOUT: dict[str, object] = {"text_encoder.dropout": 0.5}
TRAINED = {**DROPOUT, "text_encoder.training": "joint"}
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {"damsm.weight": 0.0},
    "frozen": {},
    "damsm": {**DROPOUT, "text_encoder.training": "damsm"},
    "joint": TRAINED,
    "merged": {
        **TRAINED,
        "text_encoder.clip": 0.25,
        "discriminator_schedule": "merged",
        "penalty_norm": "sum",
        "damsm.root": True,
        "damsm.chunk": 3,
    },
    "affine": {"damsm.weight": 0.0, "block": "affine", "mismatch": "roll"},
}
DOUBLE = {f"{name} 64": Case(options=options, double=True) for name, options in OPTIONS.items()}
MODES = ("plain", "frozen", "damsm", "joint")
SINGLE = {f"{name} 32": Case(options=OPTIONS[name]) for name in MODES}
ZERO = {"plain zero-1": Case(EngineConfig(name="deepspeed"), OPTIONS["plain"])}
AGAIN = {"plain recomputed": Case(EngineConfig(recompute=["generator"]), OPTIONS["plain"])}
CASES = {**DOUBLE, **SINGLE, **ZERO, **AGAIN, "joint 32 again": SINGLE["joint 32"]}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return train_cases(CASES, 1, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module", params=[2, 4], ids=["two ranks", "four ranks"])
def many(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    return train_cases(CASES, request.param, tmp_path_factory.mktemp("many"))


@pytest.mark.parametrize("name", DOUBLE)
def test_float64_is_the_same_training(
    one: dict[str, Outcome], many: dict[str, Outcome], name: str
) -> None:
    assert max(loss_differences(one[name], many[name]).values()) < 1e-9
    apart = weight_differences(one[name], many[name])
    assert {"generator", "discriminator"} <= apart.keys()
    assert max(apart.values()) < 1e-7, apart


@pytest.mark.parametrize("name", SINGLE)
def test_float32_is_the_same_training_but_for_rounding(
    one: dict[str, Outcome], many: dict[str, Outcome], name: str
) -> None:
    assert max(loss_differences(one[name], many[name]).values()) < 1e-4
    idle = weights_without_gradient(one[name], one[name.replace("32", "64")])
    assert any(key.endswith("shortcut.bias") for key in idle)
    assert not any(key.endswith("conv1.weight") for key in idle)
    apart = weight_differences(one[name], many[name], idle)
    assert max(apart.values()) < 1e-4, apart


def test_recomputation_with_its_collectives_gives_the_same_bits(many: dict[str, Outcome]) -> None:
    assert_equal_bits(many["plain recomputed"], many["plain 32"])


def test_zero_differs_from_ddp_by_the_order_of_a_sum(many: dict[str, Outcome]) -> None:
    """On two ranks not at all (test_engines.py); four gradients are added up piece by piece."""
    ours, theirs = many["plain 32"], many["plain zero-1"]
    assert max(loss_differences(ours, theirs).values()) < 1e-5
    assert max(weight_differences(ours, theirs).values()) < 1e-4


def assert_near(first: list[dict[str, float]], second: list[dict[str, float]]) -> None:
    assert len(first) == len(second)
    for step, (one, two) in enumerate(zip(first, second, strict=True)):
        for name in one:
            allowed = 1e-4 * max(abs(one[name]), 1.0)  # logits and losses are of order 1
            assert abs(one[name] - two[name]) <= allowed, (step, name, one[name], two[name])


def test_losses_of_a_run_equal_those_of_one_rank(shards: Path, tmp_path: Path) -> None:
    arguments = (
        "engine.images=40",
        "engine.batch_size=8",
        "engine.accumulate=2",
        "system.mismatch=roll",
    )
    train_tiny(shards, tmp_path / "one", *arguments)
    train_tiny(shards, tmp_path / "many", *arguments, task=("launch", "cluster.processes=4"))
    one, many = only_run(tmp_path / "one"), only_run(tmp_path / "many")
    assert one.name == many.name
    assert_near(losses_of(one), losses_of(many))


def test_a_run_of_two_ranks_resumes_with_one(shards: Path, tmp_path: Path) -> None:
    train_tiny(shards, tmp_path / "a", "engine.images=12", task=("launch", "cluster.processes=2"))
    again = train_tiny(shards, tmp_path / "a", "engine.images=20")
    assert "resuming at step 3" in again.stdout
    train_tiny(shards, tmp_path / "b", "engine.images=20")
    run, straight = only_run(tmp_path / "a"), only_run(tmp_path / "b")
    assert list_checkpoints(run)[-1] == 20
    assert_near(losses_of(straight), losses_of(run))


def test_the_same_world_twice_is_equal_to_the_bit(many: dict[str, Outcome]) -> None:
    assert_equal_bits(many["joint 32"], many["joint 32 again"])


def test_a_batch_that_the_world_does_not_divide_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cannot be divided by 3 ranks"):
        train_tiny(shards, tmp_path, task=("launch", "cluster.processes=3"))
