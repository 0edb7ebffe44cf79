"""Counts what a run's training costs; its networks are built anew, with whatever weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from t2i_hpc.reporting.results_costs import Cost
from t2i_hpc.runs.inputs import run_vocabulary, with_inputs
from t2i_hpc.runs.run_directory import open_run
from t2i_hpc.systems import build_system
from t2i_hpc.systems.encoders import checkpoint_follows
from t2i_hpc.training.cost import Captions, count_parameters, count_step

_GENERATOR = "generator"


@contextmanager
def _one_thread() -> Iterator[None]:
    # Where a table is printed others compute too: several threads would wait for each other.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def count_cost(run: Path) -> Cost:
    """Count the parameters of a run's networks, and the operations of one step on the CPU.

    Raises:
        UserError: no run, or its vocabulary is no longer there.
    """
    config = with_inputs(run, open_run(run))
    captions = Captions(config.data.max_tokens, run_vocabulary(run, config.data).size)
    with checkpoint_follows(), torch.random.fork_rng(devices=[]), _one_thread():
        system = build_system(config.system, captions.vocabulary)
        parts = system.trainable
        return Cost(
            count_parameters(parts[_GENERATOR]) if _GENERATOR in parts else None,
            sum(count_parameters(part) for part in parts.values()),
            count_step(system, captions) / 1e9,
        )
