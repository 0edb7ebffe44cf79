"""What a run's training costs: counted once, and kept beside the run in ``RUN/cost.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from t2i_hpc.common.files import sha256_of_json, write_json
from t2i_hpc.reporting.run_record import read_settings

FILE_NAME = "cost.json"
_GENERATOR = "generator"


@dataclass(frozen=True)
class Cost:
    """What does not depend on where a run is trained.

    Attributes:
        generator_parameters: of the network that generates; None where none does.
        trained_parameters: of all networks that a step updates.
        gflop_per_image: 10⁹ floating-point operations of one training step by its images.
    """

    generator_parameters: int | None
    trained_parameters: int
    gflop_per_image: float


def count_cost(run: Path) -> Cost:
    """Count the parameters of a run's networks, and the operations of one step on the CPU.

    The networks are built anew, with whatever weights: seconds to minutes.

    Raises:
        UserError: no run, or its vocabulary is no longer there.
    """
    import torch  # a table without costs starts without it

    from t2i_hpc.runs.inputs import run_vocabulary, with_inputs
    from t2i_hpc.runs.run_directory import open_run
    from t2i_hpc.systems import build_system
    from t2i_hpc.systems.encoders import checkpoint_follows
    from t2i_hpc.training.cost import Captions, count_parameters, count_step

    config = with_inputs(run, open_run(run))
    captions = Captions(config.data.max_tokens, run_vocabulary(run, config.data).size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others compute on this machine: several threads wait for each other
    try:
        with checkpoint_follows(), torch.random.fork_rng(devices=[]):
            system = build_system(config.system, captions.vocabulary)
            counts = {name: count_parameters(part) for name, part in system.trainable.items()}
            gflop = count_step(system, captions) / 1e9
            return Cost(counts.get(_GENERATOR), sum(counts.values()), gflop)
    finally:
        torch.set_num_threads(threads)


def read_cost(run: Path, count: Callable[[Path], Cost] = count_cost) -> Cost | None:
    """Return what a run costs; counted anew where its settings changed since.

    Returns:
        None for a run that has not begun.
    """
    settings = read_settings(run)
    if not settings:
        return None
    identity = sha256_of_json(settings)
    kept = _kept(run / FILE_NAME, identity)
    if kept is None:
        kept = count(run)
        write_json(run / FILE_NAME, {"settings": identity, **asdict(kept)})
    return kept


def _kept(path: Path, identity: str) -> Cost | None:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        return Cost(**row) if row.pop("settings") == identity else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not counted yet, or not by this version
