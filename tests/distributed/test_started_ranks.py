"""A run of several ranks that begins with the weights of another."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from t2i_hpc.runs.layout import folder_of, list_checkpoints
from tests.commands.trained import make_run
from tests.support.preloaded import Nursery
from tests.support.training import TINY, only_run

SIZES = ("system.noise_width=8", "system.text_encoder.width=8")


def weights(run: Path, images: int) -> dict[str, torch.Tensor]:
    files = sorted(folder_of(run, images).glob("[wf]*.safetensors"))
    return {name: value for path in files for name, value in load_file(path).items()}


def test_all_ranks_begin_with_the_weights_of_a_run(
    home: Nursery, shards: Path, tmp_path: Path
) -> None:
    """Replicas that began apart would have ended the run: they are compared before a save."""
    source, runs = make_run(tmp_path / "source", shards, (100,)), tmp_path / "runs"
    own = (*SIZES, "system.text_encoder.embedding_width=6", f"start_from={source}")
    given = [f"data.path={shards}", f"runs={runs}", *TINY, *own, "engine.images=4"]
    runs.mkdir()
    ranks = home.train_world(2, given, runs)
    assert [rank.wait() for rank in ranks] == [0, 0]
    run = only_run(runs)
    assert list_checkpoints(run)[-1] == 4
    before, after = weights(source, 100), weights(run, 4)
    assert before.keys() == after.keys()
    frozen = {name for name in before if name.startswith("text_encoder")}
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved and moved.isdisjoint(frozen)
    # One step of Adam moves no weight by more than its learning rate.
    trained = [name for name in moved if name.endswith(("weight", "bias"))]
    assert max(float((after[name] - before[name]).abs().max()) for name in trained) < 1e-3
    assert json.loads((run / "run.json").read_text())["start_from"]["images"] == 100
