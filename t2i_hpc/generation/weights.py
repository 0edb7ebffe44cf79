"""Which weights are drawn with: a run's checkpoint, or a file that was exported from one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.common.word_numbers import VOCABULARY_NOTE
from t2i_hpc.engine.checkpoints.checkpoint import choose_checkpoint, look_at, read_tensors
from t2i_hpc.engine.checkpoints.fitting import check_fit

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ChosenWeights:
    """A file of all networks' weights.

    Attributes:
        path: the file.
        sha256: its identity.
        images_seen: images that it was trained on, 0 where the file does not say.
        vocabulary: SHA-256 of the vocabulary that it was trained with; empty: not recorded.
    """

    path: Path
    sha256: str
    images_seen: int
    vocabulary: str = ""

    def networks(self) -> set[str]:
        """Return the names of the networks in the file; their weights are not read.

        Raises:
            RunError: the file cannot be read.
        """
        try:
            with safe_open(self.path, framework="pt") as opened:
                return {name.split(".")[0] for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self.path} cannot be read: {error}") from error

    def load(self, modules: nn.Module) -> None:
        """Load the networks, all of them or nothing.

        Raises:
            RunError: the networks have other names, shapes or types.
        """
        found = read_tensors(self.path)
        check_fit(self.path, found, modules.state_dict())
        modules.load_state_dict(found)


def choose_weights(run: Path, which: str) -> ChosenWeights:
    """Return the weights named by ``checkpoint=``: latest, a number of images, or a file.

    Raises:
        RunError: no such checkpoint, it is damaged, or the file holds not all networks.
    """
    if which.endswith(SUFFIX):
        return _of_file(Path(which))
    checkpoint = choose_checkpoint(run, which)
    seen = checkpoint.progress.images_seen
    return ChosenWeights(checkpoint.weights, checkpoint.sha256, seen, checkpoint.vocabulary)


def recorded_weights(run: Path, images: int) -> ChosenWeights:
    """Return a checkpoint by what its record says, without reading its tensors."""
    checkpoint = look_at(run, images)
    return ChosenWeights(checkpoint.weights, checkpoint.sha256, images, checkpoint.vocabulary)


def _of_file(path: Path) -> ChosenWeights:
    try:
        with safe_open(path, framework="pt") as opened:
            notes = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise RunError(f"checkpoint={path} cannot be read: {error}") from error
    if notes.get("what", "all") != "all":
        raise RunError(
            f"checkpoint={path} holds the network {notes['what']} alone: export all of them "
            "with t2i_hpc.checkpoints export what=all"
        )
    seen = notes.get("images", "0")
    images = int(seen) if seen.isdecimal() else 0
    return ChosenWeights(path, sha256_of_file(path), images, notes.get(VOCABULARY_NOTE, ""))
