"""The command `report`: one HTML page and one PNG about a run."""

from __future__ import annotations

import sys
from pathlib import Path

from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import write_text
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import ReportConfig


def report(config: ReportConfig) -> None:
    """Write the page and the picture, and say where."""
    from t2i_hpc.reporting.overview import overview
    from t2i_hpc.reporting.page import render
    from t2i_hpc.reporting.run_record import RunRecord
    from t2i_hpc.sampling.grids import save_picture

    run = Path(config.run)
    page = Path(config.output) if config.output else run / "report.html"
    if page.is_dir() or page.suffix != ".html":
        raise ConfigurationError(f"output={page} is no HTML file: name one, e.g. report.html")
    record = RunRecord.read(run)
    write_text(page, render(record))
    save_picture(overview(record), page.with_suffix(".png"))
    say(page)
    say(page.with_suffix(".png"))


COMMAND = Command(
    "report",
    "Writes one self-contained HTML page and one PNG about a run: samples over time, scores with\n"
    "their protocol, masks, losses, speed and configuration.",
    ReportConfig,
    report,
    (
        "python -m t2i_hpc.report run=runs/demo-1a2b3c4d",
        "python -m t2i_hpc.report run=runs/demo-1a2b3c4d output=pages/demo.html",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
