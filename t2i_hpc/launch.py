"""Door: put a task somewhere, in as many processes as wanted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from t2i_hpc.cli.command import Command, answered, split_options
from t2i_hpc.cluster.jobs import Plan
from t2i_hpc.cluster.local import run_ranks
from t2i_hpc.cluster.sweeps import refuse_axes
from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.terminal import say
from t2i_hpc.config.cluster import ClusterConfig, check_cluster
from t2i_hpc.config.compose import compose_config, to_yaml
from t2i_hpc.config.tasks import TASK_SCHEMAS, LaunchConfig

_OWN = ("task", "cluster")
_SWEEP, _FOLLOW = "--sweep", "--follow"


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for: the launcher's settings, and the words of the task."""

    config: LaunchConfig
    words: tuple[str, ...]
    folder: Path | None
    sweep: bool
    follow: bool
    print_config: bool
    print_run: bool


def launch(words: Sequence[str]) -> int:
    """Check everything that can be checked here, then start or submit the task."""
    asked = _read(words)
    task, cluster = asked.config.task, asked.config.cluster
    if asked.print_run:
        door: Command[Any] = import_module(f"t2i_hpc.{task}").COMMAND
        return door.main([*_with_folder(asked), "--print-run"])
    if asked.print_config:
        say(_configuration(asked).rstrip("\n"))
        return 0
    if cluster.name == "local" and not asked.sweep and not cluster.dry_run:
        _configuration(asked)  # the task makes the other checks itself, at once
        return run_ranks(task, _with_folder(asked), cluster.processes)
    plan = _plan(asked)
    if not plan.works and not plan.then:
        say(f"nothing is left to do: see python -m t2i_hpc.table {plan.folder}")
        return 0
    if cluster.name == "local":
        here = _show if cluster.dry_run else _run_here
        return here(plan, cluster.processes)
    return _submit(plan, asked, words)


def _read(words: Sequence[str]) -> _Asked:
    options, settings = split_options([word for word in words if word not in (_SWEEP, _FOLLOW)])
    own = [word for word in settings if word.split("=")[0].split(".")[0] in _OWN]
    rest = tuple(word for word in settings if word not in own)
    config = compose_config("launch", own, LaunchConfig, options.folder)
    sweep, follow = _SWEEP in words, _FOLLOW in words
    check_cluster(config.cluster, config.task)
    if follow and (config.cluster.name == "local" or config.cluster.dry_run):
        raise ConfigurationError(
            "--follow watches a job of Slurm's: leave it out"
            + (", or take cluster=slurm" if config.cluster.name == "local" else " of a dry run")
        )
    if sweep and (options.print_config or options.print_run):
        raise ConfigurationError(
            "--print-config and --print-run are for one run: leave out --sweep, or see all with "
            "python -m t2i_hpc.status SWEEP"
        )
    shown = options.print_config, options.print_run
    return _Asked(config, rest, options.folder, sweep, follow, *shown)


def _with_folder(asked: _Asked) -> tuple[str, ...]:
    return (*([f"--config-dir={asked.folder}"] if asked.folder else []), *asked.words)


def _configuration(asked: _Asked) -> str:
    """Return what the launcher and the task are to do, as YAML; all values are checked."""
    refuse_axes(asked.words)
    task = asked.config.task
    return to_yaml(asked.config) + to_yaml(
        compose_config(task, asked.words, TASK_SCHEMAS[task], asked.folder)
    )


def _plan(asked: _Asked) -> Plan:
    from t2i_hpc.launching.plans import Order, plan_of, sweep_of

    task, cluster = asked.config.task, asked.config.cluster
    if asked.sweep:
        return sweep_of(task, asked.words, asked.folder, cluster)
    refuse_axes(asked.words)
    config = compose_config(task, asked.words, TASK_SCHEMAS[task], asked.folder)
    return plan_of(Order(task, _with_folder(asked), config, cluster))


def _run_here(plan: Plan, processes: int) -> int:
    """Run works one after the other; the first that does not end well is the last."""
    for number, work in enumerate(plan.works):
        say(f"{number + 1} of {len(plan.works)}: {work.folder}")
        if code := run_ranks(work.task, work.words, processes):
            return code
    return 0


def _show(plan: Plan, processes: int) -> int:
    """Print what would be started here."""
    ranks = f"  # {processes} processes" if processes > 1 else ""
    for work in plan.works:
        say(f"{shlex.join(['python', '-m', f't2i_hpc.{work.task}', *work.words])}{ranks}")
    return 0


def _submit(plan: Plan, asked: _Asked, words: Sequence[str]) -> int:
    from t2i_hpc.cluster.jobs import Snapshot
    from t2i_hpc.cluster.slurm.follow import follow
    from t2i_hpc.cluster.slurm.submission import submit
    from t2i_hpc.launching import queue

    cluster = asked.config.cluster
    if cluster.dry_run:
        return _show_scripts(plan, cluster)
    living = queue.living_works(plan)
    if asked.follow and living:
        return follow(list(living.values()), plan.folder)
    fresh = queue.without_living(plan, living)
    queue.check_plan(fresh, cluster)
    queue.say_what_lives(plan, living)
    configuration = to_yaml(asked.config) if asked.sweep else _configuration(asked)
    records = submit(fresh, cluster, Snapshot.take(configuration))
    queue.let_wait(plan, living, records)
    say(queue.say_what_next(plan, records, words))
    return follow(records, plan.folder) if asked.follow else 0


def _show_scripts(plan: Plan, cluster: ClusterConfig) -> int:
    """Print what would be submitted; without Slurm's clients all of it, and unchecked."""
    from t2i_hpc.cluster.slurm.client import has_client
    from t2i_hpc.cluster.slurm.submission import batch_scripts
    from t2i_hpc.launching import queue

    if has_client("sbatch"):
        plan = queue.without_living(plan, queue.living_works(plan))
    else:
        say("sbatch is not installed here: nobody knows whether the cluster takes this", sys.stderr)
    queue.check_plan(plan, cluster)
    for title, script in batch_scripts(plan, cluster):
        say(f"{title}\n\n{script}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the door: its words are those of the task, plus task= and cluster=."""
    given = list(sys.argv[1:] if words is None else words)
    if "--help" in given or "-h" in given:
        return HELP.main(["--help"])
    return answered("launch", lambda: launch(given))


HELP = Command(
    "launch",
    "Puts a task somewhere: cluster=local starts cluster.processes ranks on this machine;\n"
    "cluster=slurm submits a job, or an array and its merge for evaluation.shards=N (evaluate)\n"
    "and cluster.build_partitions=N (shards). All other words are the task's own; see\n"
    "python -m t2i_hpc.<task> --help. Two options more:\n"
    "  --sweep   keys with several values are axes; one run a point, done ones are left out\n"
    "  --follow  stay and show the log until the job's end; of a job that is in the queue, too",
    LaunchConfig,
    lambda config: 0,
    (
        "python -m t2i_hpc.launch task=train cluster.processes=2 experiment=demo",
        "python -m t2i_hpc.launch cluster=slurm cluster.nodes=2 cluster.gpus_per_node=4 "
        "cluster.partition=gpu experiment=coco_ssagan",
        "python -m t2i_hpc.launch --sweep cluster=slurm experiment=cub_ssagan "
        "system.masks=2,3,4 seed=1,2",
        "python -m t2i_hpc.launch task=evaluate cluster=slurm run=runs/coco-1a2b3c4d "
        "evaluation.shards=16",
    ),
)

if __name__ == "__main__":
    sys.exit(main())
