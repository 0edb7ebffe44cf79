"""Configuration of the engine: how long, how fast, how often, on what."""

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
        "keep for good one checkpoint in so many images; 0: none",
        unit="images",
        minimum=0,
        identity=False,
    )
    keep_best: int = setting(
        1,
        "checkpoints with the best scores of scores.jsonl to keep beside the newest",
        unit="checkpoints",
        minimum=0,
        identity=False,
    )
    best_metric: str = setting(
        "",
        "what the name of the metric begins with that says which are best, e.g. FID; empty: that "
        "of the most images",
        identity=False,
    )


@dataclass
class ScheduleConfig:
    """How all learning rates change over a training; each part's own is multiplied by it."""

    warmup_images: int = setting(
        0, "images over which learning rates grow from zero", unit="images", minimum=0
    )
    decay: str = setting("none", "how they fall afterwards", choices=("none", "linear", "cosine"))
    decay_images: int = setting(10_000_000, "images over which they fall", unit="images", minimum=1)
    floor: float = setting(0.0, "share of them that stays in the end", minimum=0.0, maximum=1.0)


@dataclass
class EngineConfig:
    """The training loop."""

    name: str = setting(
        "ddp",
        "ddp: torch's, every rank keeps all; deepspeed: ZeRO, needs the extra t2i-hpc[deepspeed]",
        choices=("ddp", "deepspeed"),
        identity=False,
    )
    zero_stage: int = setting(
        1,
        "what engine=deepspeed deals out over the ranks: 0 nothing, 1 moments, 2 also gradients",
        minimum=0,
        maximum=2,
        identity=False,
    )
    device: str = setting(
        "auto",
        "where to compute; auto: a GPU if there is one",
        choices=("auto", "cpu", "cuda"),
        identity=False,
    )
    precision: str = setting(
        "fp32",
        "arithmetic; tf32: GPU products of 19 bits; bf16, fp16: autocast over fp32 weights, "
        "fp16 with scaled losses",
        choices=("fp32", "tf32", "bf16", "fp16"),
    )
    optimizer: str = setting(
        "auto",
        "build of Adam; auto: fused on a GPU, else adam; deepspeed: its own, compiled at the first "
        "start; apex: NVIDIA's, built from source",
        choices=("auto", "adam", "fused", "deepspeed", "apex"),
        identity=False,
    )
    compile: list[str] = setting(
        [], "networks that torch compiles, e.g. [generator,image_encoder]", identity=False
    )
    channels_last: bool = setting(
        False, "keep images as (B, H, W, C) in memory: quicker convolutions on most devices"
    )
    batch_size: int = setting(24, "global batch over all ranks", unit="images", minimum=2)
    accumulate: int = setting(
        1,
        "micro-batches that a rank's batch is cut into; saves the discriminators' memory, not the "
        "generator's, which draws the whole batch first; batch norm, wrong captions and DAMSM's "
        "negatives then span a micro-batch of all ranks, not the global batch",
        minimum=1,
    )
    clip: float | None = setting(
        None, "longest gradient of each part that has no limit of its own; empty: any", minimum=0.0
    )
    schedule: ScheduleConfig = section(ScheduleConfig)
    on_nonfinite: str = setting(
        "stop",
        "what a gradient that is no number leads to; skip: leave that update out, which costs a "
        "wait for the device in every phase",
        choices=("stop", "skip"),
    )
    skip_at_most: int = setting(
        10, "updates a session may leave out with on_nonfinite=skip", minimum=0, identity=False
    )
    images: int = setting(
        10_000_000, "images to train on, in all", unit="images", minimum=1, identity=False
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
        "time of this session; it stops early enough to save, as it does before a Slurm job ends",
        unit="minutes",
        minimum=0.01,
        identity=False,
    )
    log_every: int = setting(
        10, "steps between lines of metrics", unit="steps", minimum=1, identity=False
    )
    samples_every_images: int = setting(
        50_000, "images between sample grids", unit="images", minimum=1, identity=False
    )
    sample_rows: int = setting(
        8, "captions in a sample grid", unit="captions", minimum=1, maximum=64, identity=False
    )
    sample_columns: int = setting(
        8, "noise vectors a caption in a sample grid", minimum=1, maximum=64, identity=False
    )
    threads: int | None = setting(
        None,
        "CPU threads a rank; empty: cores / ranks of the node, or one where that is quicker",
        unit="threads",
        minimum=1,
        identity=False,
    )
    timeout: float = setting(
        600.0,
        "longest wait for another rank before it is given up as lost",
        unit="seconds",
        minimum=1.0,
        identity=False,
    )
    checkpoint: CheckpointConfig = section(CheckpointConfig)
