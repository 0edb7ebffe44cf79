"""``load_run``: from a run directory to what generates images with it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.captions import check_same_words
from t2i_hpc.runs.inputs import run_vocabulary, with_inputs
from t2i_hpc.runs.layout import is_exported
from t2i_hpc.runs.run_directory import open_run
from t2i_hpc.sampling.arithmetic import check_precision
from t2i_hpc.sampling.chosen_weights import ChosenWeights, choose_weights
from t2i_hpc.sampling.exported import ExportedFolder
from t2i_hpc.sampling.trained_run import TrainedRun
from t2i_hpc.systems import build_system
from t2i_hpc.systems.base import TextToImageSystem, generating_networks
from t2i_hpc.systems.encoders import checkpoint_follows


def load_run(
    run: str | os.PathLike[str],
    checkpoint: str | int = "latest",
    *,
    device: str | torch.device = "auto",
    precision: str = "float32",
    data: str = "",
) -> TrainedRun:
    """Load a run's networks, ready to generate.

    Args:
        run: run directory, or a folder that ``t2i_hpc.checkpoints export`` wrote.
        checkpoint: latest, a number of images seen, or an exported .safetensors file.
        device: of the networks, e.g. cpu or cuda:1; auto: a GPU if there is one.
        precision: float32, or autocast to bfloat16 or float16.
        data: folder of the run's data, where it is no longer where it was; your own captions need
            none.

    Raises:
        RunError: no run, no such checkpoint, damaged weights, or a run that generates no images.
        DataError: the vocabulary is neither in the run nor with its data.
        ConfigurationError: a device or a precision that is not there.
    """
    check_precision(precision)
    place, folder = _device(device), Path(run)
    config, chosen = find_weights(folder, str(checkpoint))
    vocabulary = run_vocabulary(folder, config.data, data)
    check_same_words(
        f"{chosen.path} of the run {folder}",
        chosen.vocabulary,
        vocabulary.sha256,
        "put the vocabulary.json back that the run was trained with",
    )
    with checkpoint_follows():
        system = build_system(config.system, vocabulary.size)
    if not isinstance(system, TextToImageSystem):
        raise RunError(f"{folder} is a run of {config.system.name}, which generates no images")
    generating = generating_networks(system)
    chosen.load(system.modules, generating)
    for name in {*system.modules} - generating if is_exported(folder) else ():
        del system.modules[name]  # it was not exported: nothing trained is in it
    system.modules.to(place).eval()
    return TrainedRun(folder, config, chosen, system, vocabulary, place, data, precision)


def find_weights(folder: Path, checkpoint: str) -> tuple[TrainConfig, ChosenWeights]:
    """Return configuration and weights of a run directory or an exported folder; none is read.

    Raises:
        RunError: no run, no such checkpoint, or a damaged one.
    """
    if not is_exported(folder):
        return with_inputs(folder, open_run(folder)), choose_weights(folder, checkpoint)
    if checkpoint != "latest":
        raise RunError(f"{folder} was exported and has one checkpoint: leave checkpoint= out")
    exported = ExportedFolder.open(folder)
    return with_inputs(folder, exported.config), exported.weights


def identify_weights(run: str | os.PathLike[str], checkpoint: str | int = "latest") -> str:
    """Return the SHA-256 of the weights that :func:`load_run` would load; none is read.

    Raises:
        RunError: no run, no such checkpoint, or a damaged one.
    """
    return find_weights(Path(run), str(checkpoint))[1].sha256


def _device(named: str | torch.device) -> torch.device:
    """Return a device that is there; none is made the process's own."""
    if str(named) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(named)
    except RuntimeError as error:
        raise ConfigurationError(f"device={named} is no device: take auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device={named}, but torch sees no GPU here; take device=cpu")
    return device
