"""Which weights generate: those of a checkpoint, or of a file that was exported from one."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.data.captions import VOCABULARY_NOTE
from t2i_hpc.runs.checkpoint import Checkpoint, choose_checkpoint, load_weights, read_state

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ChosenWeights:
    """All networks' weights: a checkpoint's, or a file that was exported from one.

    Attributes:
        path: the file, or that of a checkpoint's trained networks.
        sha256: its identity.
        images_seen: images that it was trained on, 0 where the file does not say.
        vocabulary: SHA-256 of the vocabulary that it was trained with; empty: not recorded.
        frozen: the file of a checkpoint's other networks.
    """

    path: Path
    sha256: str
    images_seen: int
    vocabulary: str = ""
    frozen: Path | None = None

    def networks(self) -> set[str]:
        """Return the names of the networks; their weights are not read.

        Raises:
            RunError: a file cannot be read.
        """
        return {name for path in self._files for name in _networks_in(path)}

    def load(self, modules: nn.Module, needed: AbstractSet[str] | None = None) -> None:
        """Load the networks, all of them or nothing; but for `needed` they may be missing.

        Raises:
            RunError: the networks have other names, shapes or types.
        """
        load_weights(self._files, modules, needed)

    @property
    def _files(self) -> list[Path]:
        return [self.path] if self.frozen is None else [self.path, self.frozen]


def choose_weights(run: Path, which: str) -> ChosenWeights:
    """Return the weights named by ``checkpoint=``: latest, a number of images, or a file.

    Raises:
        RunError: no such checkpoint, it is damaged, or the file holds not all networks.
    """
    if which.endswith(SUFFIX):
        return _of_file(Path(which))
    return _of_checkpoint(choose_checkpoint(run, which))


def recorded_weights(run: Path, images: int) -> ChosenWeights:
    """Return a checkpoint by what its record says, without reading its tensors."""
    return _of_checkpoint(read_state(run, images))


def _of_checkpoint(checkpoint: Checkpoint) -> ChosenWeights:
    seen, words = checkpoint.progress.images_seen, checkpoint.vocabulary
    return ChosenWeights(checkpoint.weights, checkpoint.sha256, seen, words, checkpoint.frozen)


def _networks_in(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as opened:
            return {name.split(".")[0] for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


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
