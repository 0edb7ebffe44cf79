"""The door `compare`: scores of runs side by side, with the papers' numbers beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from t2i_hpc.cli.command import RunsCommand
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import CompareConfig


def run(config: CompareConfig) -> None:
    """Print a table for each metric and protocol, or all of them as JSON."""
    from t2i_hpc.reporting.side_by_side import columns, table

    found = columns([Path(folder) for folder in config.run], config.metric, config.published)
    if config.json:
        say(json.dumps([column.as_dict() for column in found], indent=1))
    else:
        say("\n\n".join(table(column) for column in found))


COMMAND = RunsCommand(
    task="compare",
    summary="Puts the best scores of runs side by side, a table for each metric and protocol.\n"
    "Numbers that papers state for the same kind of protocol stand below, labelled published.\n"
    "Words without a key are runs.",
    config=CompareConfig,
    run=run,
    examples=(
        "python -m t2i_hpc.compare runs/coco-1a2b3c4d runs/coco-5e6f7a8b",
        "python -m t2i_hpc.compare runs/coco-1a2b3c4d metric=FID json=true",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
