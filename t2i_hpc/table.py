"""Door: the results of a sweep side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from t2i_hpc.cli.command import RunsCommand
from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import write_text
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import TableConfig
from t2i_hpc.reporting.results import read_results
from t2i_hpc.reporting.results_costs import Cost, read_cost
from t2i_hpc.reporting.results_text import to_csv, to_markdown


def table(config: TableConfig) -> None:
    """Print the table, or write it into a file."""
    if not config.run:
        raise RunError("nothing is named: say python -m t2i_hpc.table runs/sweeps/<name>-<hash>")
    results = read_results(config.run, config.over, _cost_of() if config.costs else None)
    text = to_csv(results) if config.format == "csv" else to_markdown(results)
    if config.output:
        write_text(Path(config.output), text)
        say(config.output)
    else:
        say(text.removesuffix("\n"))


def _cost_of() -> Callable[[Path], Cost | None]:
    from t2i_hpc.reporting.run_cost import count_cost

    return partial(read_cost, count=count_cost)


COMMAND = RunsCommand(
    "table",
    "Prints the results of a sweep, or of runs, side by side: what varies, state, images, img/s\n"
    "and the newest score of each metric. Scores of different protocols or numbers of images\n"
    "never share a column. costs=true adds parameters, operations and memory. Words without a\n"
    "key are sweeps, runs or folders of runs.",
    TableConfig,
    table,
    (
        "python -m t2i_hpc.table runs/sweeps/cub_ssagan-1a2b3c4d",
        "python -m t2i_hpc.table runs/sweeps/cub_ssagan-1a2b3c4d over=seed format=csv "
        "output=masks.csv",
        "python -m t2i_hpc.table runs/sweeps/sweep-2b3c4d5e costs=true",
        "python -m t2i_hpc.table runs/cub_ssagan-1a2b3c4d runs/cub_dfgan_id0-5e6f7a8b",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
