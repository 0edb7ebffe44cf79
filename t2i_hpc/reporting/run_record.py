"""What a run directory has to show, read from its files; nothing that is missing is an error.

Only a folder that is no run, or a run with nothing in it yet, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.compose import from_yaml
from t2i_hpc.config.fields import entries
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.evaluation.scores import DIVERSITY, NEAREST
from t2i_hpc.runs.layout import not_of_exported
from t2i_hpc.training.callbacks.caption_sensitivity import read_sensitivities

ContentT = TypeVar("ContentT", dict[str, Any], list[str])
_TAIL_BYTES = 1 << 16
_ERRORS = ("t2i_hpc.", "t2i_hpc: ", "sbatch: error", "slurmstepd: error")


@dataclass(frozen=True)
class Frame:
    """An image file of a moment of the training, and the images seen until then."""

    images: int
    path: Path


@dataclass(frozen=True)
class RunRecord:
    """The readable parts of a run directory.

    Attributes:
        folder: the run directory.
        config_text: config.yaml as it stands there.
        config: the same as nested mappings.
        info: run.json; empty if there is none.
        metrics: rows of metrics.jsonl, in the order of training.
        scores: rows of scores.jsonl, oldest first.
        samples: sample grids, in the order of training.
        masks: mask grids, in the order of training.
        attention: attention maps of encoders, in the order of training.
        captions: captions of the rows of the grids.
        stages: images of all stages of a generator, in the order of training.
        words: attention of its stages, in the order of training.
        sensitivities: caption sensitivity of the sample grids by images seen, in that order.
        nearest: generated images beside the nearest training images, in the order of training.
        diversity: images of one caption a row, in the order of training.
    """

    folder: Path
    config_text: str
    config: Mapping[str, Any]
    info: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    samples: list[Frame]
    masks: list[Frame]
    attention: list[Frame]
    captions: list[str]
    stages: list[Frame] = field(default_factory=list)
    words: list[Frame] = field(default_factory=list)
    sensitivities: Mapping[int, float] = field(default_factory=dict)
    nearest: list[Frame] = field(default_factory=list)
    diversity: list[Frame] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read a run directory.

        Raises:
            RunError: no such folder, no run, damaged files, or nothing to show.
        """
        _refuse_what_is_no_run(folder)
        record = cls(
            folder=folder,
            config_text=(folder / "config.yaml").read_text(encoding="utf-8"),
            config=_yaml(folder / "config.yaml"),
            info=_json(folder / "run.json", {}),
            metrics=[row for row in read_json_lines(folder / "metrics.jsonl") if "images" in row],
            scores=[row for row in read_json_lines(folder / "scores.jsonl") if "value" in row],
            samples=_frames(folder / "samples"),
            masks=_frames(folder / "masks"),
            attention=_frames(folder / "attention"),
            captions=_json(folder / "samples" / "captions.json", []),
            stages=_frames(folder / "stages"),
            words=_frames(folder / "words"),
            sensitivities=read_sensitivities(folder),
            nearest=_frames(folder / NEAREST),
            diversity=_frames(folder / DIVERSITY),
        )
        if not (record.metrics or record.scores or record.samples or record.attention):
            raise RunError(
                f"run={folder} has nothing to show yet (no metrics, samples or scores): train it "
                "for some steps, or evaluate it, first"
            )
        return record

    @property
    def name(self) -> str:
        """The run's name: that of run.json, or its folder's."""
        return str(self.info.get("name") or self.folder.resolve().name)

    @property
    def images(self) -> int:
        """Images that the run has been trained on, as far as its files tell."""
        seen = [row["images"] for row in [*self.metrics, *self.scores] if "images" in row]
        frames = [*self.samples, *self.attention]
        return int(max([*seen, *(frame.images for frame in frames)], default=0))

    def setting(self, key: str) -> object:
        """Return a value of the configuration by its dotted key, None if it is not there."""
        value: object = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_settings(run: Path) -> dict[str, str]:
    """Return the settings that make a run what it is; none of one that has not begun."""
    if not (run / "config.yaml").is_file():
        return {}
    config = from_yaml(run / "config.yaml", TrainConfig)
    return {entry.key: str(entry.value) for entry in entries(config) if entry.meaning.identity}


def last_row(path: Path) -> dict[str, Any]:
    """Return the last whole row of a .jsonl file, nothing where there is none."""
    for line in reversed(_tail(path)):
        try:
            row = json.loads(line)
        except ValueError:  # half written, or cut by where the tail begins
            continue
        if isinstance(row, dict):
            return row
    return {}


def last_error(path: Path) -> str:
    """Return the last line of a log that tells of an error, else its last line."""
    lines = [line.strip() for line in _tail(path) if line.strip()]
    told = [line for line in lines if line.startswith(_ERRORS) or "Error: " in line]
    return (told or lines or [""])[-1]


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL_BYTES))
            return stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _refuse_what_is_no_run(folder: Path) -> None:
    if str(folder) in ("", "."):
        raise RunError("no run is named: say run=runs/<name>-<hash>")
    if not folder.is_dir():
        raise RunError(
            f"there is no folder {folder}: run= must name a run, e.g. runs/demo-1a2b3c4d"
        )
    if hint := not_of_exported(folder):
        raise RunError(hint)
    if not (folder / "config.yaml").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
        hint = f"; it holds the runs {', '.join(inside[:4])}" if inside else ""
        raise RunError(f"{folder} is no run: it has no config.yaml{hint}; name a run's own folder")


def _yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # a damaged file makes the parser raise anything
        raise RunError(f"{path} is damaged ({str(error).splitlines()[0]}): restore it") from error
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _json(path: Path, missing: ContentT) -> ContentT:
    """Return a JSON file's value, `missing` without the file.

    Raises:
        RunError: it is damaged or of another kind than `missing`.
    """
    if not path.is_file():
        return missing
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): remove it or restore it") from error
    if not isinstance(content, type(missing)):
        raise RunError(f"{path} is damaged (no {type(missing).__name__}): remove it or restore it")
    return content


def _frames(folder: Path) -> list[Frame]:
    files = [path for path in folder.glob("*.png") if path.stem.isdigit()]
    return sorted((Frame(int(path.stem), path) for path in files), key=lambda frame: frame.images)
