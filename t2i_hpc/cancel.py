"""End the jobs of runs."""

from __future__ import annotations

import sys
from pathlib import Path

from t2i_hpc.cli.command import RunsCommand
from t2i_hpc.cluster.cancelling import Cancelled
from t2i_hpc.cluster.cancelling import cancel as end_work
from t2i_hpc.cluster.sweeps import find_runs, is_sweep
from t2i_hpc.common.errors import RunError
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import CancelConfig
from t2i_hpc.reporting.run_status import read_states


def cancel(config: CancelConfig) -> None:
    """End everything that waits or runs for the runs, and say what is left of it."""
    if not config.run:
        raise RunError("no run is named: say python -m t2i_hpc.cancel runs/<name>-<hash>")
    runs = find_runs(config.run)
    sweeps = [folder for folder in map(Path, config.run) if is_sweep(folder)]
    ended = end_work([*runs, *sweeps], config.wait)
    if not ended.jobs and not ended.local:
        say("nothing to cancel: no job waits or runs, and no training runs here")
        return
    say("\n".join(_account(ended, runs)))


def _account(ended: Cancelled, runs: list[Path]) -> list[str]:
    jobs = f"jobs that were cancelled: {', '.join(ended.jobs)}"
    local = [f"{run}: was asked to stop" for run in ended.local]
    saved = [
        f"{state.run}: {state.state}, "
        + ("nothing saved" if state.saved is None else f"saved at {state.saved:,} images")
        for state in read_states(runs)
    ]
    return [*([jobs] if ended.jobs else []), *local, *saved]


COMMAND = RunsCommand(
    "cancel",
    "Ends all jobs of runs and sweeps, waiting and running ones, and waits until they are gone;\n"
    "none is requeued. A training saves first as far as the cluster lets it (its KillWait); one\n"
    "without a job is stopped as by the file `stop`. Arguments without a key are runs.",
    CancelConfig,
    cancel,
    (
        "python -m t2i_hpc.cancel runs/coco_ssagan-1a2b3c4d",
        "python -m t2i_hpc.cancel runs/sweeps/cub_ssagan-1a2b3c4d wait=600",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
