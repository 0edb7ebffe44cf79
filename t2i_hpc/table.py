"""The command `table`: scores and costs of runs and sweeps side by side."""

from __future__ import annotations

import sys
from pathlib import Path

from t2i_hpc.cli.command import RunsCommand
from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.files import write_text
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import TableConfig
from t2i_hpc.reporting.costs import read_cost
from t2i_hpc.reporting.results import read_results
from t2i_hpc.reporting.results_text import to_csv, to_json, to_markdown

_FORMATS = {"markdown": to_markdown, "csv": to_csv, "json": to_json}


def table(config: TableConfig) -> None:
    """Print the table, or write it into a file."""
    if not config.run:
        raise RunError("no runs are named: say python -m t2i_hpc.table runs/<name>-<hash> …")
    if config.published and config.format == "csv":
        raise ConfigurationError("format=csv has no place for published=true: take format=json")
    results = read_results(
        config.run,
        config.over,
        read_cost if config.costs else None,
        metric=config.metric,
        best=config.best,
        published=config.published,
    )
    text = _FORMATS[config.format](results)
    if config.output:
        write_text(Path(config.output), text)
        say(config.output)
    else:
        say(text.removesuffix("\n"))


COMMAND = RunsCommand(
    "table",
    "Prints runs and sweeps side by side: what varies, state, images, img/s and the newest score\n"
    "of each metric, or the best with best=true. Scores of different protocols or numbers of\n"
    "images never share a column. published=true adds papers' numbers, costs=true parameters,\n"
    "operations and memory. Arguments without a key are sweeps, runs or folders of runs.",
    TableConfig,
    table,
    (
        "python -m t2i_hpc.table runs/coco-1a2b3c4d runs/coco-5e6f7a8b best=true published=true",
        "python -m t2i_hpc.table runs/sweeps/cub_ssagan-1a2b3c4d over=seed format=csv "
        "output=masks.csv",
        "python -m t2i_hpc.table runs/sweeps/sweep-2b3c4d5e costs=true",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
