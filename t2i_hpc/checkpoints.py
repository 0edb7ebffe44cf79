"""List a run's checkpoints, verify them, or export one of them."""

from __future__ import annotations

import sys
from pathlib import Path

from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.tasks import CHECKPOINT_ACTIONS, CheckpointsConfig


def run(config: CheckpointsConfig) -> None:
    """Do what the configuration's action says."""
    from t2i_hpc.runs.inventory import show, verify
    from t2i_hpc.runs.run_directory import open_run
    from t2i_hpc.sampling.exported import export

    folder = Path(config.run)
    metric = open_run(folder).engine.checkpoint.best_metric
    if config.action == "verify":
        verify(folder)
    elif config.action == "export":
        export(config)
    else:
        show(folder, metric)


class _CheckpointsCommand(Command[CheckpointsConfig]):
    def _dispatch(self, arguments: list[str]) -> int:
        keyed = [_with_key(each) for each in arguments]
        if sum(each.startswith("run=") for each in keyed) > 1:
            said = f"{' '.join(arguments)}: name one run; actions: {', '.join(CHECKPOINT_ACTIONS)}"
            raise ConfigurationError(said)
        return super()._dispatch(keyed)


def _with_key(argument: str) -> str:
    """Return an argument with its key, which action and run may leave out."""
    if "=" in argument or argument.startswith("-"):
        return argument
    return f"action={argument}" if argument in CHECKPOINT_ACTIONS else f"run={argument}"


COMMAND = _CheckpointsCommand(
    "checkpoints",
    "Lists a run's checkpoints (images, step, size, age, engine, ranks, score; * marks the best),\n"
    "verifies them (exit code 2 if one is damaged), or exports one: networks as .safetensors, a\n"
    "folder for load_run, a graph (torch.export, ONNX). Action and run need no keys.",
    CheckpointsConfig,
    run,
    (
        "python -m t2i_hpc.checkpoints verify runs/coco-1a2b3c4d",
        "python -m t2i_hpc.checkpoints export runs/coco-1a2b3c4d output=coco",
        "python -m t2i_hpc.checkpoints export runs/coco-1a2b3c4d what=all format=onnx output=graph",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
