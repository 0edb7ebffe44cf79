"""NaN and Inf stop the run or skip an update, and are never saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from t2i_hpc.common.errors import RunError
from t2i_hpc.config.engine import CheckpointConfig, EngineConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.loop import Loop, TrainingSetup
from t2i_hpc.training.precision import NonFiniteWatch
from t2i_hpc.training.progress import open_progress
from t2i_hpc.training.step import train_step
from t2i_hpc.training.stopping import StopRequest
from t2i_hpc.training.world import World
from tests.support.ranks import run_ranks
from tests.support.toys import Spoil, Toy, toy_batch
from tests.support.training import tiny_batch, tiny_system

CPU = World(0, 1, 0, 1, torch.device("cpu"))
NAN = float("nan")


def spoil(kind: str) -> Spoil:
    """Spoil phase b of step 3 of batches of four, on whichever rank has sample 11."""

    def change(loss: Tensor, batch: Batch, phase: str) -> Tensor:
        if phase != "b" or 11 not in batch.positions.tolist():
            return loss
        # The root's slope at zero: a loss as it was, with a gradient that is NaN.
        return loss * NAN if kind == "loss" else loss + (loss * 0).sqrt()

    return change


def train(world: World, folder: str, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run the loop until it stops by itself; return what it said and left."""
    run = Path(folder) / "run"
    config = EngineConfig(batch_size=4, images=40, device="cpu", **options)
    system, share = Toy(spoil(kind)), 4 // world.size

    def batches(images_seen: int) -> Iterator[Batch]:
        for first in range(images_seen, 1000, 4):
            yield toy_batch(share, first + world.rank * share)[0]

    job = TrainingSetup(run, system, batches, lambda images: None, 1, config, world)
    loop = Loop(job, open_progress(False), StopRequest())
    try:
        loop.run()
    except RunError as error:
        return {"error": str(error), "step": loop.progress.step, "saved": list_checkpoints(run)}
    return {"error": "", "step": loop.progress.step, "saved": list_checkpoints(run)}


ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "zero-0": {"name": "deepspeed", "zero_stage": 0},
    "zero-1": {"name": "deepspeed", "zero_stage": 1},
    "zero-2": {"name": "deepspeed", "zero_stage": 2},
}
DUE = {"at that step": 12, "every step": 4, "later": 1000}


def train_all(world: World, folder: str) -> dict[str, dict[str, Any]]:
    found = {}
    for name, engine in ENGINES.items():
        for kind in ("loss", "gradient"):
            for due, images in DUE.items():
                if name != "ddp" and due == "every step":
                    continue
                place = Path(folder) / f"{name} {kind} {due}"
                options = {**engine, "checkpoint": CheckpointConfig(every_images=images)}
                found[f"{name} {kind} {due}"] = train(world, str(place), kind, options)
    return found


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runs")
    run_ranks(train_all, request.param, folder, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_run_stops_within_two_steps_and_saves_nothing_of_it(
    runs: Any, name: str, kind: str
) -> None:
    for rank in runs:
        for due in DUE:
            if name != "ddp" and due == "every step":
                continue
            left = rank[f"{name} {kind} {due}"]
            assert "is not finite; the checkpoints of" in left["error"]
            assert left["step"] <= 4
            if rank is runs[0]:  # which writes, and has done so when it leaves
                assert left["saved"] == ([4, 8] if due == "every step" else [0])


@pytest.mark.parametrize("name", ENGINES)
def test_the_error_names_step_phase_and_tensor(runs: Any, name: str) -> None:
    last = runs[-1]  # has sample 11
    for due in ("at that step", "later"):
        error = last[f"{name} loss {due}"]["error"]
        assert error.startswith("the loss size in phase b of step 3 is not finite"), error
        error = last[f"{name} gradient {due}"]["error"]
        # The first of all, which only rank 0 of two reaches; ZeRO tells one norm of a phase.
        whole = "b.rare" if len(runs) == 1 else "b.common.weight"
        tensor = "b" if name in ("zero-1", "zero-2") else whole
        assert error.startswith(f"the gradient of {tensor} in phase b of step 3"), error
        first = runs[0][f"{name} gradient {due}"]["error"]
        assert first.startswith("the gradient of b"), first


def steps(strategy: DDPStrategy, first: int, last: int) -> dict[str, Tensor]:
    for step in range(first, last):
        train_step(strategy, *toy_batch(4, 4 * step), 4 * step)
    return {name: value.clone() for name, value in strategy.system.modules.state_dict().items()}


def skipping(at_most: int) -> DDPStrategy:
    config = EngineConfig(batch_size=4, on_nonfinite="skip", skip_at_most=at_most)
    return DDPStrategy(Toy(spoil("gradient")), CPU, config)


def test_an_update_is_skipped_and_the_training_continues() -> None:
    strategy = skipping(1)
    before, after = steps(strategy, 0, 2), steps(strategy, 2, 3)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("b."), name
    assert strategy.skipped == 1
    later = steps(strategy, 3, 5)
    assert not torch.equal(later["b.rare"], after["b.rare"])
    assert strategy.nonfinite.pop_first(10) is None
    assert int(strategy.read_moments()["b/rare/step"]) == 4


def test_too_many_skipped_updates_stop_the_run() -> None:
    strategy = skipping(0)
    with pytest.raises(RunError, match=r"phase b of step 3: engine\.skip_at_most=0"):
        steps(strategy, 0, 5)


def test_running_statistics_keep_no_nan() -> None:
    system = tiny_system()
    config = EngineConfig(batch_size=4, on_nonfinite="skip", skip_at_most=3)
    strategy = DDPStrategy(system, CPU, config)
    noise = torch.randn(4, 100)
    train_step(strategy, tiny_batch(), noise, 0)
    before = {name: value.clone() for name, value in system.modules.state_dict().items()}
    noise[1, 2] = NAN
    train_step(strategy, tiny_batch(start=4), noise, 4)
    after = system.modules.state_dict()
    generator = [name for name in before if name.startswith("generator.")]
    assert any(name.endswith("running_mean") for name in generator)
    for name in generator:
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(before[name], after[name]), name
    assert all(bool(value.isfinite().all()) for value in after.values())


def test_notes_are_read_once_their_step_is_over() -> None:
    watch = NonFiniteWatch()
    good, bad = torch.ones(2), torch.tensor([1.0, NAN])
    watch.record(1, "a", {"x": good[0]}, {"w": good})
    watch.record(2, "a", {"x": good[0]}, {"w": bad, "v": bad})
    assert watch.pop_first(before=2) is None
    assert watch.pop_first(before=3) == "the gradient of w in phase a of step 2"
    watch.record(3, "b", {"x": bad[1]}, {})
    assert watch.pop_first(before=4) == "the loss x in phase b of step 3"


def test_what_was_not_looked_at_is_kept() -> None:
    watch = NonFiniteWatch()
    bad = torch.tensor(NAN)
    watch.record(1, "a", {"x": bad}, {})
    watch.record(1, "b", {"y": bad}, {})
    assert watch.pop_first(before=2) == "the loss x in phase a of step 1"
    assert watch.pop_first(before=2) == "the loss y in phase b of step 1"
    assert watch.pop_first(before=2) is None


def test_a_skipped_update_hides_no_loss_of_another_phase() -> None:
    def change(loss: Tensor, batch: Batch, phase: str) -> Tensor:
        if phase == "a":
            return loss + torch.full_like(loss, NAN)  # the loss alone: its gradient is as it was
        return loss + (loss * 0).sqrt()

    config = EngineConfig(batch_size=4, on_nonfinite="skip", skip_at_most=3)
    strategy = DDPStrategy(Toy(change), CPU, config)
    train_step(strategy, *toy_batch(4))
    assert strategy.skipped == 1
    assert strategy.nonfinite.pop_first(10) == "the loss size in phase a of step 1"


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_number_among_many_is_seen(value: float, dtype: torch.dtype) -> None:
    watch = NonFiniteWatch()
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[617] = value
    watch.record(1, "a", {}, {"w": tensor})
    assert watch.pop_first(2) is not None
