"""Lists, verifies and exports the checkpoints of a run, and prints what it finds."""

from __future__ import annotations

from pathlib import Path

from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.files import write_bytes
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import CheckpointsConfig
from t2i_hpc.runs.checkpoint import choose_checkpoint
from t2i_hpc.runs.inventory import check_all, networks_of, table
from t2i_hpc.runs.layout import damaged_checkpoints


def show(folder: Path, metric: str) -> None:
    """Print a table of the checkpoints; their tensors are not read.

    Args:
        folder: the run directory.
        metric: what the name of the scored metric begins with; empty: any.
    """
    say("\n".join(table(folder, metric)))
    for path in damaged_checkpoints(folder):
        say(f"{path.name}: was found damaged and set aside")


def verify(folder: Path) -> None:
    """Read every checkpoint again and print of each whether it is what was written.

    Raises:
        RunError: one or more are not, or there is none.
    """
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
            f"({', '.join(bad)} images): training sets damaged ones aside and resumes from the "
            "newest good one"
        )


def export(folder: Path, config: CheckpointsConfig) -> None:
    """Write networks of a checkpoint as one file, whole or not at all.

    Raises:
        UserError: the file exists or has another ending, or there is no such network.
    """
    from safetensors.torch import save

    from t2i_hpc.data.captions import VOCABULARY_NOTE

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
