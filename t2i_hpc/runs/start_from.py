"""What ``start_from=`` names: the weights that a new run begins with, and their identity.

It may be a run, one of its checkpoints (RUN/checkpoints/<images>), or a .safetensors file that
`checkpoints export`, `convert` or `pretrain` wrote. Only weights are taken: the new run has its own
data, schedule and optimizers. A run goes on being trained, and its newest checkpoint becomes
another one; so a run that began from it keeps what it began from, and the same command resumes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.files import sha256_of_file, sha256_of_json
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.captions import VOCABULARY_NOTE
from t2i_hpc.runs.checkpoint import FROZEN, WEIGHTS, Checkpoint, read_state, verify
from t2i_hpc.runs.layout import list_checkpoints, not_of_exported

KEY = "start_from"
# What `convert` calls the networks of one file, where a system calls them otherwise.
_SUFFIXES = (".safetensors", ".pth", ".pt")
_NETWORKS = {"text": "text_encoder", "image": "image_encoder"}


@dataclass(frozen=True)
class Start:
    """Weights that a run begins with.

    Attributes:
        given: as ``start_from=`` has it.
        files: safetensors files that hold them.
        sha256: identity of what they hold.
        images: that they were trained on, 0 where nobody says.
        vocabulary: SHA-256 of the words that they were trained with; empty: not recorded.
        checkpoint: that they are of; None: a file by itself.
        network: that the file holds alone, by the network's own names; empty: all, by name.
    """

    given: str
    files: tuple[Path, ...]
    sha256: str
    images: int
    vocabulary: str
    checkpoint: Checkpoint | None = None
    network: str = ""

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{KEY}={self.given}"

    @property
    def run(self) -> Path | None:
        """The run directory that they are of."""
        return self.checkpoint.folder.parent.parent if self.checkpoint else None

    def verify(self) -> None:
        """Read all files and compare them with what was written.

        Raises:
            RunError: one is damaged.
        """
        if self.checkpoint:
            verify(self.checkpoint)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors by their names in a system; their values are not read.

        Raises:
            RunError: a file cannot be read.
        """
        found: dict[str, tuple[int, ...]] = {}
        for path in self.files:
            try:
                with safe_open(path, framework="pt") as opened:
                    names = list(opened.keys())
                    found |= {n: tuple(opened.get_slice(n).get_shape()) for n in names}
            except (OSError, SafetensorError) as error:
                raise RunError(f"{self.title}: {path} cannot be read: {error}") from error
        return {self.name(name): shape for name, shape in found.items()}

    def name(self, name: str) -> str:
        """Return what a system calls a tensor of the files."""
        return f"{self.network}.{name}" if self.network else name


def find_start(given: str) -> Start:
    """Open what ``start_from=`` names; of a run its newest checkpoint. No tensor is read.

    Raises:
        ConfigurationError: it is no run, checkpoint or file of weights.
        RunError: it is damaged, or a run without a checkpoint.
    """
    path = Path(given)
    if path.is_file() or path.suffix in _SUFFIXES:
        return _of_file(given, path)
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        run, there = path.parent.parent, [int(path.name)]
    else:
        run, there = path, list_checkpoints(path)
    if hint := not_of_exported(path):
        raise ConfigurationError(f"{KEY}={given} is no run: {hint}")
    if not (run / "config.yaml").is_file():
        missing = "it has no config.yaml" if run.is_dir() else "there is no such folder"
        raise ConfigurationError(
            f"{KEY}={given} is no run ({missing}): name a run directory, one of its "
            "checkpoints/<images>, or a .safetensors file"
        )
    if not there:
        raise RunError(f"{KEY}={given}: the run has no checkpoint yet, so train it first")
    checkpoint = read_state(run, there[-1])
    files = checkpoint.state["files"]
    digest = sha256_of_json([files[name]["sha256"] for name in (WEIGHTS, FROZEN) if name in files])
    images, words = checkpoint.progress.images_seen, checkpoint.vocabulary
    return Start(given, tuple(checkpoint.files), digest, images, words, checkpoint)


def _of_file(given: str, path: Path) -> Start:
    if not path.is_file():
        raise ConfigurationError(f"{KEY}={given}: there is no such file")
    if path.suffix != ".safetensors":
        raise ConfigurationError(
            f"{KEY}={given} is no .safetensors file: make a run of a published checkpoint first, "
            "with t2i_hpc.convert experiment=…, and name that"
        )
    try:
        with safe_open(path, framework="pt") as opened:
            notes: Mapping[str, str] = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise RunError(f"{KEY}={given} cannot be read: {error}") from error
    alone = notes.get("what", notes.get("network", path.stem if path.stem in _ENCODERS else "all"))
    network = "" if alone == "all" else _NETWORKS.get(alone, alone)
    images = notes.get("images", "")
    seen = int(images) if images.isdecimal() else 0
    words = notes.get(VOCABULARY_NOTE, "")
    return Start(given, (path,), sha256_of_file(path), seen, words, network=network)


_ENCODERS = tuple(_NETWORKS.values())  # names of pre-training's files


def start_identity(config: TrainConfig, recorded: Mapping[str, str] | None) -> dict[str, Any]:
    """Return what a start adds to a run's identity; nothing where there is none.

    Args:
        config: of the run.
        recorded: SHA-256 by key, of a run that has begun: that goes before what is there now.

    Raises:
        UserError: see :func:`find_start`.
    """
    if not config.start_from:
        return {}
    digest = (recorded or {}).get(KEY) or find_start(config.start_from).sha256
    return {"start": {"sha256": digest, "networks": sorted(config.start_from_networks)}}


def is_start_of(config: TrainConfig, began: object) -> bool:
    """Whether a run that recorded `began` was begun with the same ``start_from=``."""
    absolute = str(Path(config.start_from).absolute())
    return isinstance(began, dict) and (
        config.start_from == began.get("given") or absolute == began.get("path")
    )
