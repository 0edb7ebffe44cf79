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


@dataclass
class EngineConfig:
    """The training loop."""

    name: str = setting("ddp", "engine", choices=("ddp",), identity=False)
    device: str = setting(
        "auto",
        "where to compute; auto: a GPU if there is one",
        choices=("auto", "cpu", "cuda"),
        identity=False,
    )
    precision: str = setting(
        "fp32", "arithmetic; bf16 = autocast over fp32 weights", choices=("fp32", "bf16")
    )
    channels_last: bool = setting(
        False, "keep images as (B, H, W, C) in memory: quicker convolutions on most devices"
    )
    batch_size: int = setting(24, "global batch over all ranks", unit="images", minimum=2)
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
        "CPU threads a rank; empty: cores / ranks of the node",
        unit="threads",
        minimum=1,
        identity=False,
    )
    timeout: float = setting(
        600.0,
        "longest wait for another rank before giving up",
        unit="seconds",
        minimum=1.0,
        identity=False,
    )
    checkpoint: CheckpointConfig = section(CheckpointConfig)
