"""Configuration of training: how long, how fast, how often, on what."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import section, setting


@dataclass
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_images: int = setting(
        100_000, "images between checkpoints", unit="images", minimum=1, identity=False
    )
    every_minutes: float = setting(
        30.0, "longest time between checkpoints", unit="minutes", minimum=0.01, identity=False
    )
    keep: int = setting(
        2,
        "newest checkpoints to keep (2 or more survive a damaged one)",
        unit="checkpoints",
        minimum=1,
        identity=False,
    )
    milestones: int = setting(
        0,
        "images between checkpoints that are never deleted; 0: none",
        unit="images",
        minimum=0,
        identity=False,
    )
    keep_best: int = setting(
        1,
        "checkpoints with the best scores in scores.jsonl to keep beside the newest",
        unit="checkpoints",
        minimum=0,
        identity=False,
    )
    best_metric: str = setting(
        "",
        "prefix of the name of the metric that decides which are best, e.g. FID; empty: the metric "
        "of the most images",
        identity=False,
    )


@dataclass
class ScheduleConfig:
    """A factor of all learning rates over a training."""

    warmup_images: int = setting(0, "images of linear warmup from zero", unit="images", minimum=0)
    decay: str = setting(
        "none", "decay of the learning rates after warmup", choices=("none", "linear", "cosine")
    )
    decay_images: int = setting(10_000_000, "images of the decay", unit="images", minimum=1)
    floor: float = setting(0.0, "factor at the end of the decay", minimum=0.0, maximum=1.0)


@dataclass
class EngineConfig:
    """The training loop."""

    name: str = setting(
        "ddp",
        "ddp: torch's DistributedDataParallel; deepspeed: ZeRO, needs the extra t2i-hpc[deepspeed]",
        choices=("ddp", "deepspeed"),
        identity=False,
    )
    zero_stage: int = setting(
        1,
        "engine=deepspeed: what is sharded over the ranks: 0 nothing, 1 optimizer states, 2 also "
        "gradients",
        minimum=0,
        maximum=2,
        identity=False,
    )
    device: str = setting(
        "auto",
        "device; auto: a GPU if there is one",
        choices=("auto", "cpu", "cuda"),
        identity=False,
    )
    precision: str = setting(
        "auto",
        "auto: tf32 on GPUs that have it, else fp32; fp32: float32 by IEEE; tf32: GPU products of "
        "19 bits; bf16, fp16: autocast over fp32 weights, what stays float32 in tf32, fp16 with "
        "loss scaling",
        choices=("auto", "fp32", "tf32", "bf16", "fp16"),
        # A run is the same on every machine, so what auto becomes on one is no part of it.
        counts_as={"auto": "fp32"},
    )
    deterministic: bool = setting(
        False,
        "bit-identical runs on one kind of GPU: no benchmark of convolutions, deterministic "
        "algorithms alone; slower; on CPUs runs are so anyway",
        identity=False,
    )
    optimizer: str = setting(
        "auto",
        "implementation of Adam; auto: fused; adam: torch's single operations, which take four "
        "times as long on a CPU; deepspeed: its own, compiled at the first start; apex: "
        "NVIDIA's, built from source",
        choices=("auto", "adam", "fused", "deepspeed", "apex"),
        identity=False,
    )
    compile: list[str] = setting(
        [],
        "phases that torch compiles whole, e.g. [discriminator,penalty,generator], or all; "
        "generator: the network too; other networks by name, e.g. [image_encoder]. Each phase is "
        "compared with its eager self at a start",
        identity=False,
    )
    channels_last: bool = setting(
        False, "channels-last memory format: faster convolutions on most devices"
    )
    batch_size: int = setting(24, "global batch size, over all ranks", unit="images", minimum=2)
    accumulate: int = setting(
        1,
        "micro-batches of a rank's batch (gradient accumulation): the activations of one at a "
        "time, for one more forward of the generator; batch norm, wrong captions and DAMSM's "
        "negatives then span a micro-batch of all ranks, not the global batch",
        minimum=1,
    )
    split_losses: bool = setting(
        True,
        "a phase's losses of real images and of fake ones one after the other: the activations of "
        "one at a time; false: in one backward, equal but for rounding, of fewer, larger kernels",
        identity=False,
    )
    recompute: list[str] = setting(
        [],
        "networks whose blocks keep their inputs alone and run again within the backward pass, "
        "e.g. [generator]: less memory, the same bits, one more forward of them",
        identity=False,
    )
    gradient_compression: str = setting(
        "none",
        "what ranks average gradients in; bf16: half the bytes, each gradient rounded to 8 bits, "
        "losses equal to about 1 %; not with engine=deepspeed",
        choices=("none", "bf16"),
        neutral="none",
    )
    clip: float | None = setting(
        None, "gradient norm clip of each module without one of its own; empty: none", minimum=0.0
    )
    schedule: ScheduleConfig = section(ScheduleConfig)
    on_nonfinite: str = setting(
        "stop",
        "what a non-finite gradient (NaN or Inf) leads to; skip: skip that update, which costs a "
        "device sync in every phase",
        choices=("stop", "skip"),
    )
    skip_at_most: int = setting(
        10, "updates that a session may skip with on_nonfinite=skip", minimum=0, identity=False
    )
    images: int = setting(
        10_000_000, "images to train on in all", unit="images", minimum=1, identity=False
    )
    minutes: float | None = setting(
        None,
        "training time, all sessions of the run together",
        unit="minutes",
        minimum=0.01,
        identity=False,
    )
    max_minutes: float | None = setting(
        None,
        "time limit of this session, which stops early enough to save",
        unit="minutes",
        minimum=0.01,
        identity=False,
    )
    patience: int | None = setting(
        None,
        "t2i_hpc.pretrain ends when the top-1 retrieval of held-out images, scored at "
        "each samples_every_images, has not risen for so many scores, and the encoders' files are "
        "then those of the best; empty: trains on to engine.images, files of the newest",
        unit="scores",
        minimum=1,
        identity=False,
    )
    log_every: int = setting(
        10, "steps between lines of metrics.jsonl", unit="steps", minimum=1, identity=False
    )
    profile: list[int] = setting(
        [],
        "steps of this session of which rank 0 writes a torch trace to profile/ of the run "
        "directory: [10,13] from 10 to 13, [4] four after the first ten; empty: none",
        unit="steps",
        minimum=1,
        identity=False,
    )
    samples_every_images: int = setting(
        50_000, "images between sample grids", unit="images", minimum=1, identity=False
    )
    sample_rows: int = setting(
        8, "captions in a sample grid", unit="captions", minimum=1, maximum=64, identity=False
    )
    sample_columns: int = setting(
        8, "noise vectors of a caption in a sample grid", minimum=1, maximum=64, identity=False
    )
    threads: int | None = setting(
        None,
        "CPU threads of a rank; empty: cores / ranks of the node, or one where that is faster",
        unit="threads",
        minimum=1,
        identity=False,
    )
    timeout: float = setting(
        600.0,
        "longest wait for another rank before it counts as lost",
        unit="seconds",
        minimum=1.0,
        identity=False,
    )
    checkpoint: CheckpointConfig = section(CheckpointConfig)
