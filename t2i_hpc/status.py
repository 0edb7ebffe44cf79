"""The command `status`: state and progress of runs."""

from __future__ import annotations

import sys
from pathlib import Path

from t2i_hpc.cli.command import RunsCommand
from t2i_hpc.cluster.sweeps import find_runs
from t2i_hpc.common.errors import RunError
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import StatusConfig
from t2i_hpc.reporting.run_status import read_states, status_details, status_json, status_table


def status(config: StatusConfig) -> None:
    """Print a table of the runs, or all about one."""
    if not config.run and not Path(config.runs).is_dir():
        raise RunError(f"there is no folder {config.runs}: name a run, or a folder with runs=")
    states = read_states(find_runs(config.run or [config.runs]))
    if config.format == "json":
        say(status_json(states))
    elif len(states) == 1:
        say("\n".join(status_details(states[0])))
    else:
        say("\n".join(status_table(states)))


COMMAND = RunsCommand(
    "status",
    "Prints the status of runs: state (new, waiting, running, unknown, stopped, done, failed,\n"
    "lost), progress, img/s, ETA, restarts, job, nodes, last score, last error. From Slurm where\n"
    "there is one, and from the runs' own files; unknown: Slurm gives no answer. Arguments\n"
    "without a key are runs, sweeps or folders of runs.",
    StatusConfig,
    status,
    (
        "python -m t2i_hpc.status",
        "python -m t2i_hpc.status runs/coco_ssagan-1a2b3c4d",
        "python -m t2i_hpc.status runs/sweeps/cub_ssagan-1a2b3c4d format=json",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
