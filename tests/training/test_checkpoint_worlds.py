"""One run through strategies and worlds: its curve is the uninterrupted run's."""

from __future__ import annotations

from pathlib import Path

from t2i_hpc.runs.checkpoint import read_state
from t2i_hpc.runs.layout import list_checkpoints
from tests.support.training import losses_of, only_run, train_tiny


def test_a_run_goes_from_ddp_to_deepspeed_and_back(shards: Path, tmp_path: Path) -> None:
    mixed, straight = tmp_path / "mixed", tmp_path / "straight"
    four, two = (("launch", f"cluster.processes={processes}") for processes in (4, 2))
    train_tiny(shards, mixed, "engine.images=12", task=four)
    train_tiny(shards, mixed, "engine=deepspeed", "engine.images=24", task=two)
    train_tiny(shards, mixed, "engine.images=36")
    train_tiny(shards, straight, "engine.images=36")
    run, other = only_run(mixed), only_run(straight)
    assert run.name == other.name
    assert list_checkpoints(run) == [24, 36]
    made = [read_state(run, images).state["origin"] for images in (24, 36)]
    assert made[0]["engine"].startswith("DeepSpeed")
    assert made[1]["engine"].startswith("DDP")
    assert [origin["world"] for origin in made] == [2, 1]
    ours, theirs = losses_of(run), losses_of(other)
    assert len(ours) == len(theirs) == 9
    for step, (one, two_) in enumerate(zip(theirs, ours, strict=True)):
        for name, value in one.items():
            assert abs(value - two_[name]) <= 1e-4 * max(1.0, abs(value)), (step, name)
