"""A folder with what generates images and nothing else: it loads without run, data and training.

It holds ``config.json`` (what made it, and the run's configuration), ``inputs/`` (the vocabulary
or the tokenizer, and the shape of a pretrained BERT, as in a run directory), and either
``weights.safetensors`` with the networks that generate, for :func:`t2i_hpc.load_run`, or a graph
for other programs (:mod:`t2i_hpc.sampling.graphs`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

import t2i_hpc
from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.files import fsync_folder, sha256_of_file, write_bytes, write_json
from t2i_hpc.common.terminal import say
from t2i_hpc.config.compose import from_yaml
from t2i_hpc.config.tasks import CheckpointsConfig, TrainConfig
from t2i_hpc.data.captions import VOCABULARY_NOTE
from t2i_hpc.runs.inputs import keep_inputs
from t2i_hpc.runs.layout import EXPORTED
from t2i_hpc.sampling.chosen_weights import SUFFIX, ChosenWeights
from t2i_hpc.systems.base import generating_networks

CONFIG, WEIGHTS = EXPORTED, "weights.safetensors"
_FORMAT = "t2i_hpc export 1"
_FOLDER, _FILE = "folder", "weights"


@dataclass(frozen=True)
class ExportedFolder:
    """What an exported folder says of itself."""

    config: TrainConfig
    weights: ChosenWeights

    @classmethod
    def open(cls, folder: Path) -> ExportedFolder:
        """Read a folder; its weights are not read.

        Raises:
            RunError: it is damaged, of another version, or holds a graph.
        """
        try:
            content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            known = content["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder / CONFIG} is damaged: export the run again") from error
        if known != _FORMAT:
            raise RunError(
                f"{folder} is of the format {known!r}, and this version of t2i_hpc reads "
                f"{_FORMAT!r}: take the version that wrote it, or export the run again"
            )
        path = folder / WEIGHTS
        if not path.is_file():
            raise RunError(
                f"{folder} has no {WEIGHTS}: a graph is run by torch.export.load or onnxruntime; "
                "export format=folder for what load_run reads"
            )
        if sha256_of_file(path) != content.get("weights_sha256"):
            raise RunError(f"{path} does not match its SHA-256: export the run again")
        images, words = content.get("images_seen", 0), content.get(VOCABULARY_NOTE, "")
        weights = ChosenWeights(path, content["checkpoint_sha256"], images, words)
        # JSON is YAML: the same reader, with the same words for what is wrong.
        return cls(from_yaml(folder / CONFIG, TrainConfig, "config"), weights)


def export(config: CheckpointsConfig) -> None:
    """Export what ``checkpoints export`` asks for: a file, a folder, or a graph.

    Raises:
        UserError: settings that do not go together, an output that is there, or no such network.
    """
    plain = config.output and not Path(config.output).suffix  # a name with a dot is a file's
    form = config.format or (_FOLDER if plain else _FILE)
    if form == _FILE:
        from t2i_hpc.runs.inventory import export as export_file

        export_file(Path(config.run), config)
        return
    output = _free_output(config.output, form)
    if form == _FOLDER and config.what != CheckpointsConfig().what:
        raise ConfigurationError(
            f"what={config.what} chooses the networks of a file: a folder has all that generate, "
            "so leave it out"
        )
    from t2i_hpc.sampling.loading import load_run

    trained = load_run(config.run, config.checkpoint, device="cpu")

    def write_weights(folder: Path) -> dict[str, Any]:
        names = generating_networks(trained.system)
        tensors = {
            name: value.contiguous()
            for name, value in trained.system.modules.state_dict().items()
            if name.split(".")[0] in names
        }
        write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))
        return {"weights_sha256": sha256_of_file(folder / WEIGHTS), "networks": sorted(names)}

    def write_model(folder: Path) -> dict[str, Any]:
        from t2i_hpc.sampling.graphs import graph_of, write_graph

        graph = graph_of(trained, config.what)
        path = write_graph(graph, form, folder)
        given = graph.example(1)
        made = graph.run(given)
        return {
            "file": path.name,
            "inputs": [_described(*each) for each in zip(graph.inputs, given, strict=True)],
            "outputs": [_described(*each) for each in zip(graph.outputs, made, strict=True)],
        }

    write: Callable[[Path], dict[str, Any]] = write_weights if form == _FOLDER else write_model
    with _whole(output) as folder:
        keep_inputs(folder, trained.config, trained.vocabulary)
        record = {
            "format": _FORMAT,
            "t2i_hpc": t2i_hpc.__version__,
            "run": trained.run.resolve().name,
            "images_seen": trained.images_seen,
            "checkpoint_sha256": trained.checkpoint_sha256,
            VOCABULARY_NOTE: trained.vocabulary.sha256,
            "config": asdict(trained.config),
            **write(folder),
        }
        write_json(folder / CONFIG, record)
    say(f"{output}: what generates after {trained.images_seen:,} images ({form})")


def _described(name: str, value: torch.Tensor) -> dict[str, Any]:
    """Return name, type and shape of an input or output; the size of the batch is free."""
    kind = str(value.dtype).removeprefix("torch.")
    return {"name": name, "type": kind, "shape": ["B", *value.shape[1:]]}


def _free_output(name: str, form: str) -> Path:
    output = Path(name)
    if not name or output.suffix == SUFFIX:
        raise ConfigurationError(f"output={name} is no folder, as format={form} writes: name one")
    if output.exists():
        raise ConfigurationError(
            f"output={output} is there already: name another folder, or delete it first"
        )
    return output


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """Give a folder that appears under `output` only when the block ends without error."""
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(output)
        fsync_folder(output.resolve().parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
