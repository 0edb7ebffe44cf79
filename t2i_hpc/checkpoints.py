"""Door: a run's checkpoints listed, verified, or one of them exported.

python -m t2i_hpc.checkpoints runs/demo-1a2b3c4d
python -m t2i_hpc.checkpoints verify runs/demo-1a2b3c4d

Words without a key are the action and the run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import CheckpointsConfig

ACTIONS = ("list", "verify", "export")


def run(config: CheckpointsConfig) -> None:
    """Do what the configuration's action says."""
    from t2i_hpc.runs.run_directory import open_run

    folder = Path(config.run)
    metric = open_run(folder).engine.checkpoint.best_metric
    if config.action == "verify":
        verify(folder)
    elif config.action == "export":
        export(folder, config)
    else:
        show(folder, metric)


def show(folder: Path, metric: str) -> None:
    """Print a table of the checkpoints; their tensors are not read."""
    from t2i_hpc.runs.inventory import table
    from t2i_hpc.runs.layout import damaged_checkpoints

    say("\n".join(table(folder, metric)))
    for path in damaged_checkpoints(folder):
        say(f"{path.name}: was found damaged and set aside")


def verify(folder: Path) -> None:
    """Read every checkpoint again and say of each whether it is what was written.

    Raises:
        RunError: one or more are not, or there is none.
    """
    from t2i_hpc.runs.inventory import check_all

    results: list[str | None] = []
    for images, damage in check_all(folder):
        say(damage or f"{images:,} images: all right")
        results.append(damage and f"{images:,}")
    if not results:
        raise RunError(f"{folder} has no checkpoint to verify: train it first")
    bad = [images for images in results if images]
    if bad:
        raise RunError(
            f"{len(bad)} of {len(results)} checkpoints of {folder} cannot be used "
            f"({', '.join(bad)} images): training sets damaged ones aside and goes on from the "
            "newest good one"
        )


def export(folder: Path, config: CheckpointsConfig) -> None:
    """Write networks of a checkpoint as one file, whole or not at all."""
    from safetensors.torch import save

    from t2i_hpc.common.files import write_bytes
    from t2i_hpc.data.captions import VOCABULARY_NOTE
    from t2i_hpc.runs.checkpoint import choose_checkpoint
    from t2i_hpc.runs.inventory import networks_of

    output = Path(config.output)
    if output.suffix != ".safetensors":
        raise ConfigurationError(f"output={config.output} is no .safetensors file: name one")
    if output.exists():
        raise ConfigurationError(
            f"output={output} is there already: name another file, or delete it first"
        )
    checkpoint = choose_checkpoint(folder, config.checkpoint)
    tensors = networks_of(checkpoint, config.what)
    notes = {"format": "pt", "run": folder.resolve().name, "what": config.what}
    notes |= {VOCABULARY_NOTE: checkpoint.vocabulary} if checkpoint.vocabulary else {}
    write_bytes(output, save(tensors, notes | {"images": str(checkpoint.progress.images_seen)}))
    say(f"{output}: {len(tensors)} tensors after {checkpoint.progress.images_seen:,} images")


class _CheckpointsDoor(Command[CheckpointsConfig]):
    """The door, whose action and run may stand without their keys."""

    def _open(self, words: list[str]) -> int:
        keyed = [_with_key(word) for word in words]
        runs = [word.removeprefix("run=") for word in keyed if word.startswith("run=")]
        if len(runs) > 1:
            raise ConfigurationError(
                f"{runs[0]!r} and {runs[1]!r} are no actions, and one run is looked at at a time; "
                f"actions: {', '.join(ACTIONS)}"
            )
        return super()._open(keyed)


def _with_key(word: str) -> str:
    if "=" in word or word.startswith("-"):
        return word
    return f"action={word}" if word in ACTIONS else f"run={word}"


COMMAND = _CheckpointsDoor(
    "checkpoints",
    "Lists a run's checkpoints (images, step, size, age, engine, ranks, score; * marks the best),\n"
    "verifies them (reads and hashes everything; exit code 2 if one is damaged), or exports one\n"
    "network or all as a .safetensors file. Action and run may be given without their keys.",
    CheckpointsConfig,
    run,
    (
        "python -m t2i_hpc.checkpoints runs/coco-1a2b3c4d",
        "python -m t2i_hpc.checkpoints verify runs/coco-1a2b3c4d",
        "python -m t2i_hpc.checkpoints export run=runs/coco-1a2b3c4d output=generator.safetensors",
        "python -m t2i_hpc.checkpoints export run=runs/coco-1a2b3c4d checkpoint=500000 what=all "
        "output=all.safetensors",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
