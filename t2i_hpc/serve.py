"""The command `serve`: a page in the browser on which a trained run answers captions."""

from __future__ import annotations

import sys

from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.tasks import ServeConfig


def serve(config: ServeConfig) -> None:
    """Load the run, print the page's address, and answer until Ctrl-C."""
    try:
        from t2i_hpc.serving.server import run_server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ConfigurationError("the page needs an extra: pip install 't2i-hpc[serve]'") from error
    run_server(config)


COMMAND = Command(
    "serve",
    "Opens a page on which a trained run generates images for captions: words to swap, seeds,\n"
    "semantic masks or word attention over the images, one caption over the checkpoints. Only\n"
    "this machine sees it, and only with the token in the printed address. One model is in\n"
    "memory; requests wait for each other. Works without internet; from another machine through\n"
    "an ssh tunnel, whose command is printed.",
    ServeConfig,
    serve,
    (
        "python -m t2i_hpc.serve run=runs/demo-1a2b3c4d",
        "python -m t2i_hpc.serve run=runs/demo-1a2b3c4d port=8350 device=cpu",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
