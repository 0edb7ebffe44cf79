"""The configuration of each task: a dataclass, and the groups that ``group=name`` chooses from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.config.evaluation import EvaluationConfig, GenerationConfig
from t2i_hpc.config.fields import inherited, section, setting
from t2i_hpc.config.gan_settings import SystemConfig
from t2i_hpc.config.systems import SYSTEM_SCHEMAS

CHECKPOINT_ACTIONS = ("list", "verify", "export")


@dataclass
class EvaluationsConfig:
    """Background evaluations of a training; their scores are in the run's curves."""

    every_images: int = setting(
        0,
        "images between evaluations; 0: none",
        unit="images",
        minimum=0,
        identity=False,
    )
    overrides: list[str] = setting(
        [],
        "overrides of t2i_hpc.launch task=evaluate, e.g. "
        '\'evaluation.overrides=["evaluation.shards=8","cluster=slurm"]\'; empty: one process '
        "on this machine",
        identity=False,
    )


@dataclass
class TrainConfig:
    """Train a system on shards; the same command resumes its run."""

    name: str = setting("run", "first part of the run directory's name", identity=False)
    runs: str = setting("runs", "folder of run directories", identity=False)
    seed: int = setting(1, "seed of weights, order, crops, captions and noise", minimum=0)
    start_from: str = setting(
        "",
        "weights that a new run begins with: a run directory (its newest checkpoint), one of its "
        "checkpoints/<images>, or a .safetensors file; optimizers begin anew; empty: first weights",
        identity=False,  # their content counts: runs/start_from.py
    )
    start_from_networks: list[str] = setting(
        [],
        "networks to take from start_from; empty: all that both have, but encoders that "
        "system.*.weights names",
        identity=False,
    )
    trackers: list[str] = setting(
        ["tensorboard"],
        "what shows curves, sample grids and scores beside metrics.jsonl; wandb and mlflow need "
        "the extra t2i-hpc[trackers], trackio t2i-hpc[trackio]; offline unless their environment "
        "says otherwise",
        choices=("tensorboard", "wandb", "mlflow", "trackio"),
        identity=False,
    )
    data: DataConfig = section(DataConfig)
    system: SystemConfig = section(SystemConfig)
    engine: EngineConfig = section(EngineConfig)
    evaluation: EvaluationsConfig = section(EvaluationsConfig)


@dataclass
class PretrainConfig(TrainConfig):
    """Pre-train DAMSM's encoders; the group system is damsm unless named."""

    name: str = inherited(TrainConfig, "name", "encoders")


@dataclass
class RunDataConfig:
    """Where a run's data is now."""

    path: str = setting(
        "",
        "folder of the run's shards, for captions; empty: where the run was trained, or the same "
        "path from the current directory",
    )


@dataclass
class EvaluateConfig:
    """Score a run's generator, or a folder of images, in any number of evaluation shards."""

    run: str = setting("", "run directory")
    checkpoint: str = setting(
        "latest",
        "latest, all, the number of images of one, or of several ('checkpoint=\"100,200\"'), or a "
        ".safetensors file that t2i_hpc.checkpoints exported",
    )
    images: str = setting("", "score this folder of images instead of a run")
    reference: str = setting(
        "",
        "folder of images to compare with, instead of a split; or a .npz file with their mean and "
        "covariance (mu, sigma), as pytorch-fid, TTUR, clean-fid, ADM and EDM write it",
    )
    export_statistics: str = setting(
        "",
        ".npz file to write: mean and covariance of the real images' features (mu, sigma), as "
        "pytorch-fid, TTUR and clean-fid read them",
    )
    output: str = setting(
        "",
        "folder for statistics and scores.jsonl; empty: the run, or IMAGES-scores beside images=",
    )
    json: bool = setting(False, "print a JSON object for each score, not a line for people")
    device: str = setting(
        "auto", "device; auto: a GPU if there is one", choices=("auto", "cpu", "cuda")
    )
    threads: int | None = setting(
        None, "CPU threads of a rank; empty: cores / ranks of the node", unit="threads", minimum=1
    )
    data: RunDataConfig = section(RunDataConfig)
    evaluation: EvaluationConfig = section(EvaluationConfig)


@dataclass
class GenerateConfig(GenerationConfig):
    """Generate images of captions with a trained run."""

    run: str = setting("", "run directory")
    checkpoint: str = setting("latest", "latest or the number of images of one")
    device: str = setting(
        "auto", "device; auto: a GPU if there is one", choices=("auto", "cpu", "cuda")
    )
    threads: int | None = setting(
        None, "CPU threads of a rank; empty: cores / ranks of the node", unit="threads", minimum=1
    )
    data: RunDataConfig = section(RunDataConfig)


@dataclass
class ServeConfig:
    """Serve a page on which a trained run answers captions."""

    run: str = setting("", "run directory")
    checkpoint: str = setting("latest", "checkpoint at the start: latest or its number of images")
    host: str = setting(
        "127.0.0.1", "address to listen on; 0.0.0.0: whoever reaches this machine and has the token"
    )
    port: int = setting(8350, "port; 0: any that is free", minimum=0, maximum=65535)
    token: str = setting(
        "", "secret that the address must hold; empty: a new one each time; none: no secret"
    )
    most_images: int = setting(
        64, "images that one request may ask for", unit="images", minimum=1, maximum=1024
    )
    most_waiting: int = setting(
        8, "requests that may wait for the model; more are told to come back", minimum=1
    )
    device: str = setting(
        "auto", "device; auto: a GPU if there is one", choices=("auto", "cpu", "cuda")
    )
    threads: int | None = setting(
        None, "CPU threads; empty: as many as torch takes", unit="threads", minimum=1
    )
    data: RunDataConfig = section(RunDataConfig)


@dataclass
class CheckpointsConfig:
    """List, verify or export a run's checkpoints."""

    run: str = setting("", "run directory")
    action: str = setting("list", "what to do", choices=CHECKPOINT_ACTIONS)
    checkpoint: str = setting("latest", "export: latest or the number of images of one")
    what: str = setting("generator", "export: a network by name, or all")
    output: str = setting("", "export: .safetensors file, or folder, to write")
    format: str = setting(
        "",
        "export: weights of networks as a file; folder of all that generates, which "
        "t2i_hpc.load_run loads; or a graph for other programs (what=generator: of encoded "
        "captions, what=all: of tokens); empty: a file or a folder by output=",
        choices=("", "weights", "folder", "torch_export", "onnx"),
    )


@dataclass
class ReportConfig:
    """Write one self-contained HTML page and one PNG about a run."""

    run: str = setting("", "run directory")
    output: str = setting("", "HTML file to write; empty: report.html inside the run")


@dataclass
class StatusConfig:
    """Print the status of runs: on a cluster, on this machine, or when they ended."""

    run: list[str] = setting([], "run directories, sweeps, or folders of runs; empty: all of runs=")
    runs: str = setting("runs", "folder of run directories")
    format: str = setting("text", "format of the output", choices=("text", "json"))


@dataclass
class CancelConfig:
    """Cancel the jobs of runs and sweeps, pending and running ones."""

    run: list[str] = setting([], "run directories or sweeps")
    wait: float = setting(
        180.0, "how long to wait for the jobs to end", unit="seconds", minimum=0.0
    )


@dataclass
class TableConfig:
    """Print the results of a sweep, or of some runs, side by side."""

    run: list[str] = setting(
        [], "sweeps, run directories, folders of runs, or folders with a scores.jsonl"
    )
    metric: str = setting("", "only metrics whose name begins with this; empty: all")
    best: bool = setting(False, "show each run's best scores, not its newest ones")
    published: bool = setting(
        False, "also show papers' numbers for the same network, data set and N (not with csv)"
    )
    over: str = setting(
        "", "axis of the sweep to average over, e.g. seed: mean ± standard deviation"
    )
    costs: bool = setting(
        False,
        "also show parameters, GFLOP of a training step per image (each run is counted once, for "
        "seconds to minutes) and peak memory",
    )
    format: str = setting("markdown", "format of the output", choices=("markdown", "csv", "json"))
    output: str = setting("", "file to write; empty: print")


@dataclass
class FetchConfig:
    """Download the weights that cannot be shipped, and verify them."""

    what: str = setting(
        "inception",
        "which weights: FID's network, or torchvision's for the literature's FID",
        choices=("inception", "inception_literature"),
    )
    output: str = setting("", "folder; empty: the user's cache folder")
    url: str = setting("", "URL to download from, e.g. a mirror or file:///…; empty: the original")


@dataclass
class ConvertConfig:
    """Turn published checkpoints into a run directory, or one file into ours, or back."""

    generator: str = setting(
        "", "run directory: file of the generator, .pth of the reference or .safetensors"
    )
    discriminator: str = setting("", "run directory: file of the discriminator (one-stage GANs)")
    head: str = setting(
        "", "run directory: file of DF-GAN's or GALIP's head (netC); empty: the discriminator's"
    )
    discriminator64: str = setting("", "run directory: that of images of 64 px (staged GANs)")
    discriminator128: str = setting("", "run directory: that of images of 128 px (staged GANs)")
    discriminator256: str = setting("", "run directory: that of images of 256 px (staged GANs)")
    text_encoder: str = setting("", "run directory: file of DAMSM's text encoder")
    image_encoder: str = setting("", "run directory: file of DAMSM's image encoder")
    vocabulary: str = setting(
        "",
        "run directory: the words that the text encoder was trained with, captions.pickle or "
        "vocabulary.json; empty: those of data.path",
    )
    images: int = setting(
        0,
        "run directory: images that the weights were trained on, where known",
        unit="images",
        minimum=0,
    )

    reference: str = setting(
        "",
        "system of the reference: ssa_gan, df_gan, rat_gan, clip_gan, attn_gan, dm_gan, damsm; "
        "written system=…",
    )
    network: str = setting(
        "",
        "generator; discriminator (ssa_gan, df_gan, rat_gan, clip_gan), discriminator64, "
        "discriminator128, discriminator256 (attn_gan, dm_gan); head (df_gan, clip_gan); text, "
        "image (damsm)",
    )
    direction: str = setting(
        "import",
        "import = the reference's names to ours; export = ours to the reference's",
        choices=("import", "export"),
    )
    input: str = setting("", "file to read: .pth of the reference, or .safetensors")
    output: str = setting(
        "",
        "file to write: .safetensors (import) or .pth (export); of a run directory its folder, "
        "empty: RUNS/NAME-HASH",
    )


@dataclass
class LaunchConfig:
    """Launch a task: in several processes on this machine, or on a cluster."""

    task: str = setting(
        "train",
        "task to launch",
        choices=("train", "pretrain", "evaluate", "generate", "shards", "report"),
    )
    cluster: ClusterConfig = section(ClusterConfig)


TASK_SCHEMAS: dict[str, type[Any]] = {
    "train": TrainConfig,
    "pretrain": PretrainConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "report": ReportConfig,
    "serve": ServeConfig,
    "checkpoints": CheckpointsConfig,
    "shards": ShardsConfig,
    "fetch": FetchConfig,
    "convert": ConvertConfig,
    "launch": LaunchConfig,
    "status": StatusConfig,
    "cancel": CancelConfig,
    "table": TableConfig,
}

# The groups of a task and what they are unless another name is given; None: nothing.
_TRAINING = {"data": "demo", "system": "ssa_gan", "engine": "ddp", "experiment": None}
TASK_GROUPS: dict[str, dict[str, str | None]] = {
    **{task: {} for task in TASK_SCHEMAS},
    "train": {**_TRAINING, "size": None},  # after the experiment, whose sizes it replaces
    "pretrain": {**_TRAINING, "system": "damsm"},
    "evaluate": {"evaluation": "default"},
    "launch": {"cluster": "local"},
}

# The folder of a group in configs/ that has another name than the group: hydra knows groups by
# their folders, and would take the key `size` of `shards` for this one.
GROUP_FOLDERS = {"size": "model_size"}

# What groups offer without a file in configs/: the dataclass says it all.
GROUPS: dict[str, Mapping[str, type[Any]]] = {
    "system": SYSTEM_SCHEMAS,
    "engine": dict.fromkeys(("ddp", "deepspeed"), EngineConfig),
    "evaluation": {"default": EvaluationConfig},
    "cluster": dict.fromkeys(("local", "slurm"), ClusterConfig),
}
