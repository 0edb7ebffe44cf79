"""Run or submit a task, in as many processes as wanted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from t2i_hpc.cli.command import Command, answered
from t2i_hpc.cluster.local_processes import run_ranks
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import LaunchConfig
from t2i_hpc.launching.plans import LaunchRequest


def launch(arguments: Sequence[str]) -> int:
    """Validate everything that can be validated here, then start or submit the task."""
    request = LaunchRequest.read(arguments)
    task, cluster = request.config.task, request.config.cluster
    if request.print_run:
        given = [*request.arguments, "--print-run"]
        return int(import_module(f"t2i_hpc.{task}").COMMAND.main(given))
    if request.print_config:
        say(request.configuration().rstrip("\n"))
        return 0
    if cluster.name == "local" and not request.many_runs and not cluster.dry_run:
        request.task_config()  # the task makes the other checks itself, at once
        return run_ranks(task, request.arguments, cluster.processes)
    from t2i_hpc.launching.queue import launch_plan  # submitit: not for ranks of this machine

    return launch_plan(request.plan(), request, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: its arguments are those of the task, plus task= and cluster=."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    help_wanted = "--help" in given or "-h" in given
    return HELP.main(["--help"]) if help_wanted else answered("launch", lambda: launch(given))


HELP = Command(
    "launch",
    "Runs a task: cluster=local starts cluster.processes ranks here; cluster=slurm submits a job,\n"
    "or an array and its merge for evaluation.shards=N and cluster.build_partitions=N (shards).\n"
    "Further arguments are the task's own. Options beside those below:\n"
    "  --sweep   keys with several values are axes; one run a point, done ones are left out\n"
    "  --follow  show the log until the job's end; of a job that is in the queue, too",
    LaunchConfig,
    lambda config: 0,
    (
        "python -m t2i_hpc.launch task=train cluster.processes=2 experiment=demo",
        "python -m t2i_hpc.launch cluster=slurm cluster.nodes=2 experiment=coco_ssagan",
        "python -m t2i_hpc.launch --sweep cluster=slurm experiment=cub_ssagan system.masks=2,3,4",
        "python -m t2i_hpc.launch task=evaluate cluster=slurm run=RUN evaluation.shards=16",
        "python -m t2i_hpc.launch task=evaluate run=runs/sweeps/cub_ssagan-1a2b3c4d",
    ),
)

if __name__ == "__main__":
    sys.exit(main())
