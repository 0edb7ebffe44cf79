"""A run is its configuration: the same command finds the same folder again.

``runs/<name>-<hash>``, the hash over every value that decides the result (and the identity of
data and vocabulary), but not over paths, lengths, speeds or the number of ranks. So a longer
training, a moved data folder or another cluster resumes the run, and another seed starts a new one.
Of a file of weights its content counts. The run records that hash, so the same command finds a
run whose files are gone: its checkpoints hold the weights.
"""

from __future__ import annotations

import datetime
import fcntl
import glob
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.files import git, sha256_of_file, sha256_of_json, write_json, write_text
from t2i_hpc.config.compose import from_yaml, to_yaml
from t2i_hpc.config.fields import file_entries, identity
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.runs.layout import list_checkpoints, not_of_exported
from t2i_hpc.runs.start_from import KEY, is_start_of, start_identity

_LOG = logging.getLogger("t2i_hpc")
CONVERTED, STARTED = ORIGINS = ("converted", KEY)  # entries of run.json
_PACKAGES = ("t2i-hpc", "torch", "torchvision", "numpy", "hydra-core", "webdataset", "pillow")


def run_identity(
    config: TrainConfig, data_digest: str, recorded: Mapping[str, str] | None = None
) -> str:
    """Return the 8 hexadecimal digits that name a run.

    Args:
        config: of the training.
        data_digest: identity of its data.
        recorded: SHA-256 of files by key, for those that are no longer there.

    Raises:
        ConfigurationError: a file is named that is neither there nor recorded.
    """
    return sha256_of_json({**_settings(config, recorded), "data": data_digest})[:8]


def _settings(config: TrainConfig, recorded: Mapping[str, str] | None) -> dict[str, Any]:
    """Return what decides a run beside its data; runs without a start are named as ever."""
    return {"config": identity(config, recorded), **start_identity(config, recorded)}


def run_folder(config: TrainConfig, data_digest: str) -> Path:
    """Return the folder of the run, whether it exists or not.

    Raises:
        ConfigurationError: the run's name is none of a folder; a file is named that is not there,
            and no run with a checkpoint was trained from it.
        RunError: what ``start_from=`` names is damaged, or a run without a checkpoint.
    """
    if not config.name or config.name.startswith(".") or not config.name.isprintable():
        raise ConfigurationError(f"name={config.name!r} is no name of a run: take letters")
    if "/" in config.name:
        raise ConfigurationError(f"name={config.name} holds a /: folders are named by runs=")
    lost = any(not Path(entry.value).is_file() for entry in file_entries(config))
    if lost or config.start_from:
        known = _run_of_recorded_files(config, data_digest)
        if known:
            return known
    return Path(config.runs) / f"{config.name}-{run_identity(config, data_digest)}"


def data_record(
    config: TrainConfig,
    content: str,
    vocabulary: str,
    recorded: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return what ``run.json`` keeps, for :func:`refuse_swapped_vocabulary`.

    Args:
        config: of the run.
        content: SHA-256 of what holds the samples.
        vocabulary: SHA-256 of the vocabulary or tokenizer.
        recorded: SHA-256 of files by key, for those that are no longer there.
    """
    plain = identity(config, recorded) if not config.start_from else _settings(config, recorded)
    settings = sha256_of_json(plain)
    return {"settings": settings, "content": content, "vocabulary": vocabulary}


def refuse_swapped_vocabulary(folder: Path, config: TrainConfig, data: Mapping[str, str]) -> None:
    """Refuse to begin a run that another folder holds but for the vocabulary.

    A vocabulary.json that was replaced by mistake would silently start a training anew.

    Args:
        folder: of the run, which need not exist.
        config: of the run.
        data: its :func:`data_record`.

    Raises:
        RunError: names the other run and what to do.
    """
    if (folder / "config.yaml").exists():
        return
    unnamed = run_folder(config, data["content"])  # the vocabulary had no part in the name
    if (unnamed / "config.yaml").exists():
        raise RunError(
            f"{unnamed} holds this training, begun by a version that did not record the "
            f"vocabulary: rename it to {folder.name} to resume it with the vocabulary of today, "
            "or choose another name= to begin a new run"
        )
    for path in sorted(folder.parent.glob(f"{config.name}-*/run.json")):
        known = _data_of(path)
        same = all(known.get(key) == data[key] for key in ("settings", "content"))
        if same and known.get("vocabulary") != data["vocabulary"]:
            raise RunError(
                f"{path.parent} holds this training with another vocabulary: tokens would mean "
                "other words now, so restore the vocabulary.json that it was trained with (or "
                "its data.tokenizer) to resume it, or choose another name= to begin a new run"
            )


def _data_of(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        found = content.get("data", {})
    except (OSError, ValueError, AttributeError):
        return {}  # a run that is damaged is told when it is used
    return found if isinstance(found, dict) else {}


def recorded_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that a run was trained from, by key."""
    info = _info_of(folder)
    found, began = info.get("files", {}), info.get(STARTED)
    found = found if isinstance(found, dict) else {}
    return {**found, KEY: began["sha256"]} if isinstance(began, dict) else found


def _run_of_recorded_files(config: TrainConfig, data_digest: str) -> Path | None:
    """Return the run of this configuration that recorded files which are other ones or gone now."""
    for folder in sorted(Path(config.runs).glob(f"{glob.escape(config.name)}-????????")):
        if config.start_from and not is_start_of(config, _info_of(folder).get(STARTED, {})):
            continue
        recorded = recorded_files(folder)
        try:
            same = folder.name == f"{config.name}-{run_identity(config, data_digest, recorded)}"
        except ConfigurationError:
            continue
        if same and list_checkpoints(folder):
            return folder
    return None


def open_run(folder: Path) -> TrainConfig:
    """Return the configuration of an existing run.

    Raises:
        RunError: no folder is named, or it is no run.
    """
    if str(folder) in ("", "."):
        raise RunError("no run is named: say run=runs/<name>-<hash>")
    if not folder.is_dir():
        raise RunError(f"run={folder}: there is no such folder{_known(folder.parent)}")
    if hint := not_of_exported(folder):
        raise RunError(f"run={folder} is no run: {hint}")
    if not (folder / "config.yaml").is_file():
        raise RunError(f"run={folder} is no run: it has no config.yaml{_known(folder)}")
    return from_yaml(folder / "config.yaml", TrainConfig)


def _known(folder: Path) -> str:
    runs = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
    return f"; runs in {folder}: {', '.join(runs[-5:])}" if runs else ""


def prepare_run(
    folder: Path,
    config: TrainConfig,
    world: int,
    device: torch.device,
    data: Mapping[str, str] | None = None,
    *,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write the configuration and what the run is made with.

    Args:
        folder: of the run.
        config: of the run.
        world: number of ranks.
        device: of the networks.
        data: the run's :func:`data_record`.
        origin: entries about where its first weights are from; what a run recorded once, stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", to_yaml(config))
    path = folder / "run.json"
    before = _info_of(folder)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_json(
        path,
        {
            "name": folder.name,
            "data": dict(data or {}),
            "created": before.get("created", now),
            "directory": str(Path.cwd()),
            "files": {**before.get("files", {}), **_hashes(config)},
            "versions": {name: _version(name) for name in _PACKAGES}
            | {"python": platform.python_version()},
            "git": _git(),
            "hardware": describe_hardware(device),
            "world": world,
            **{key: before.get(key, value) for key, value in (origin or {}).items()},
            **{key: before[key] for key in ORIGINS if key in before},
        },
    )


def _info_of(folder: Path) -> dict[str, Any]:
    """Return a run's run.json, empty where it is missing or damaged."""
    try:
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _hashes(config: TrainConfig) -> dict[str, str]:
    """Return the SHA-256 of the files that a configuration names, by key."""
    files = {entry.key: Path(entry.value) for entry in file_entries(config)}
    return {key: sha256_of_file(path) for key, path in files.items() if path.is_file()}


def describe_hardware(device: torch.device) -> str:
    """Return the processor in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0))
    return f"{platform.machine()} CPU, {cores} cores"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Refuse a second writer of the run directory.

    Raises:
        RunError: another process holds the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:  # NFS locks only what is open for writing
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{folder} is being written by another process; wait for it, stop it, or "
                "train another run with another name= or seed="
            ) from error
        except OSError as error:
            _LOG.warning(
                "the file system of %s has no file locks (%s): nothing keeps a second process from "
                "writing this run, so start none",
                folder,
                error.strerror,
            )
        yield


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git() -> dict[str, str]:
    """Return commit and state of the checkout the code runs from, empty outside of one."""
    commit = git("rev-parse", "HEAD").strip()
    if not commit:
        return {}
    changed = git("status", "--porcelain", "--untracked-files=no").strip()
    return {"commit": commit, "state": "changed" if changed else "clean"}
