"""The command `fetch`: download the weights that cannot be shipped, on a machine with internet."""

from __future__ import annotations

import sys
from pathlib import Path

from t2i_hpc.cli.command import Command
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import FetchConfig


def run(config: FetchConfig) -> None:
    """Fetch a network's weights unless they are there, and print their path."""
    from t2i_hpc.evaluation.detectors.weights import cache_folder, fetch, published_file

    file = published_file(config.what)
    folder = Path(config.output) if config.output else cache_folder()
    if file.is_in(folder):
        say(f"{folder / file.name} is there already and whole")
        return
    say(f"fetched {fetch(file, folder, config.url or file.url)}")


COMMAND = Command(
    task="fetch",
    summary="Download weights once, check their hash, and put them where evaluate looks.",
    config=FetchConfig,
    run=run,
    examples=(
        "python -m t2i_hpc.fetch what=inception",
        "python -m t2i_hpc.fetch what=inception_literature",
        "python -m t2i_hpc.fetch what=inception output=weights url=https://a.mirror/file.pth",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
