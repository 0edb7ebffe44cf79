"""Door: put a task somewhere, in as many processes as wanted."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from t2i_hpc.cluster.local import run_ranks
from t2i_hpc.common.errors import USER_ERROR_EXIT_CODE, UserError
from t2i_hpc.config.compose import compose_config, to_yaml
from t2i_hpc.config.door import Door, split_options
from t2i_hpc.config.registry import TASK_SCHEMAS
from t2i_hpc.config.tasks import LaunchConfig

_OWN = ("task", "cluster")


def launch(words: Sequence[str]) -> int:
    """Check the whole configuration, then start the task's ranks."""
    options, settings = split_options(words)
    own = [word for word in settings if word.split("=")[0].split(".")[0] in _OWN]
    rest = [word for word in settings if word not in own]
    config = compose_config("launch", own, LaunchConfig, options.folder)
    task = compose_config(config.task, rest, TASK_SCHEMAS[config.task], options.folder)
    if options.print_config:
        print(to_yaml(config) + to_yaml(task), end="")
        return 0
    folder = [f"--config-dir={options.folder}"] if options.folder else []
    return run_ranks(config.task, [*folder, *rest], config.cluster.processes)


def main(words: Sequence[str] | None = None) -> int:
    """Run the door: its words are those of the task, plus task= and cluster=."""
    given = list(sys.argv[1:] if words is None else words)
    if "--help" in given or "-h" in given:
        return HELP.open(["--help"])
    try:
        return launch(given)
    except UserError as error:
        print(f"t2i_hpc.launch: {error}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE


HELP = Door(
    "launch",
    "Puts a task somewhere: cluster=local starts cluster.processes ranks on this machine.\n"
    "All other words are the task's own; see python -m t2i_hpc.<task> --help.",
    LaunchConfig,
    lambda config: 0,
    (
        "python -m t2i_hpc.launch task=train cluster.processes=2 experiment=demo",
        "python -m t2i_hpc.launch task=evaluate run=runs/demo-1a2b3c4d evaluation=demo",
    ),
)

if __name__ == "__main__":
    sys.exit(main())
