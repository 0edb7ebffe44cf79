"""What a run directory keeps of its inputs, so that it works wherever it is copied to.

``inputs/`` holds the vocabulary or the tokenizer, and what describes a pretrained BERT or CLIP:
small files without which nothing can read a caption as the run does. Weights are in every
checkpoint. The data stays where it is: its folder is looked for where the run was trained, then
in the current directory, or is named anew.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import write_bytes
from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.fields import entries
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import VOCABULARY
from t2i_hpc.data.split import DEMO, Split, open_vocabulary
from t2i_hpc.data.storage.fetching import is_remote

_FOLDER = "inputs"
_TOKENIZER = "tokenizer.json"
# Networks of folders: the system's setting that names the weights, and the files beside them that
# say what the network is.
_PRETRAINED = {
    "bert": ("text_encoder.bert.pretrained", ("config.json",)),
    "clip": ("clip", ("config.json", _TOKENIZER)),
}
ConfigT = TypeVar("ConfigT")


def keep_inputs(run: Path, config: TrainConfig, vocabulary: Vocabulary) -> None:
    """Copy what reads captions into a run directory, once."""
    if config.data.tokenizer:
        _keep(Path(config.data.tokenizer), run / _FOLDER / _TOKENIZER)
    elif not (run / _FOLDER / VOCABULARY).exists():
        vocabulary.save(run / _FOLDER / VOCABULARY)
    for kind, (key, files) in _PRETRAINED.items():
        for name in files:
            if weights := _named(config, key):
                _keep(weights.with_name(name), run / _FOLDER / kind / name)


def with_inputs(run: Path, config: TrainConfig) -> TrainConfig:
    """Return a run's configuration with the files that the run keeps in place of the originals.

    The weights that it names may be gone: build its system where a checkpoint follows
    (:func:`t2i_hpc.systems.encoders.checkpoint_follows`).
    """
    tokenizer = run / _FOLDER / _TOKENIZER
    if config.data.tokenizer and tokenizer.is_file():
        config = _replaced(config, "data.tokenizer", str(tokenizer))
    for kind, (key, _) in _PRETRAINED.items():
        kept = run / _FOLDER / kind
        if _named(config, key) and (kept / "config.json").is_file():
            config = _replaced(config, f"system.{key}", str(kept / "model.safetensors"))
    return config


def run_vocabulary(run: Path, data: DataConfig, named: str = "") -> Vocabulary:
    """Return the vocabulary that a run reads captions with.

    Args:
        run: the run directory.
        data: of its configuration, after :func:`with_inputs`.
        named: folder of the data, where a person named one.

    Raises:
        DataError: neither the run nor its data has it.
    """
    kept = run / _FOLDER / VOCABULARY
    if not data.tokenizer and kept.is_file():
        return Vocabulary.load(kept)
    return open_vocabulary(data if data.tokenizer else locate_data(run, data, named))


def open_run_split(
    run: Path, data: DataConfig, split: str, *, named: str = "", vocabulary: Vocabulary
) -> Split:
    """Open a split of a run's data; its captions are read with the run's own vocabulary.

    Args:
        run: the run directory.
        data: of its configuration, after :func:`with_inputs`.
        split: name of the split.
        named: folder of the data, where a person named one.
        vocabulary: of the run.

    Raises:
        DataError: it is not there, or damaged.
    """
    opened = Split.open(locate_data(run, data, named), split)
    opened.vocabulary = vocabulary
    return opened


def locate_data(run: Path, data: DataConfig, named: str = "") -> DataConfig:
    """Return a run's data configuration with the folder of shards where it is now.

    A relative path is looked for where the run was trained, then in the current directory.

    Raises:
        DataError: it is in no such place; says which were tried.
    """
    if named:
        return dataclasses.replace(data, path=named, paths=[])
    if not data.path or data.path == DEMO or is_remote(data.path, "data.path"):
        return data
    path, began = Path(data.path), _trained_in(run)
    places = [began / path] if began else []  # an absolute path stays what it is
    places = list(dict.fromkeys([*places, path.absolute()]))
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        tried = " or ".join(map(str, places))
        raise DataError(
            f"the data of {run} is not in {tried}: name its folder of shards with data.path="
        )
    return dataclasses.replace(data, path=str(found), paths=[])


def _trained_in(run: Path) -> Path | None:
    """Return the directory that the run's newest session was started in."""
    try:
        info = json.loads((run / "run.json").read_text(encoding="utf-8"))
        return Path(info["directory"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(source: Path, kept: Path) -> None:
    if not kept.exists() and source.is_file():
        write_bytes(kept, source.read_bytes())


def _named(config: TrainConfig, key: str) -> Path | None:
    """Return the file of weights that a system's setting names, if it has one."""
    value = next((e.value for e in entries(config.system) if e.key == key), "")
    return Path(value) if value else None


def _replaced(config: ConfigT, key: str, value: Any) -> ConfigT:
    """Return a configuration with another value under a dotted key."""
    name, _, rest = key.partition(".")
    inner = _replaced(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inner})  # type: ignore[type-var]
