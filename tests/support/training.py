"""Small trainings for tests: seconds on one core."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.one_stage_settings import SSAGANConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.systems.one_stage_gan import OneStageGAN

ENGINE = (
    "engine.batch_size=4",
    "engine.log_every=1",
    "engine.device=cpu",
    "engine.threads=1",
    "engine.sample_rows=2",
    "engine.sample_columns=2",
    "engine.timeout=60",
    "data.workers=0",
)
TINY = (
    "system.resolution=64",
    "system.generator_width=2",
    "system.discriminator_width=2",
    "system.mask_width=4",
    "system.damsm.weight=0",
    "system.text_encoder.width=16",
    "system.text_encoder.embedding_width=12",
    *ENGINE,
)


def tiny_config(training: str = "frozen", damsm: float = 0.0) -> SSAGANConfig:
    """Return the smallest SSA-GAN; DAMSM with EfficientNet-Lite0 where it is asked for."""
    config = SSAGANConfig(resolution=64, generator_width=2, discriminator_width=2, mask_width=4)
    config.text_encoder.width = 16
    config.text_encoder.embedding_width = 12
    config.text_encoder.dropout = 0.0
    config.text_encoder.training = training
    config.damsm.weight = damsm
    config.image_encoder.name = "efficientnet_lite0"
    return config


def tiny_system(training: str = "frozen", damsm: float = 0.0) -> OneStageGAN:
    """Build it with fixed weights, none of which is zero."""
    torch.manual_seed(0)
    system = OneStageGAN(tiny_config(training, damsm), 20)
    with torch.no_grad():
        for name, parameter in system.modules.named_parameters():
            if not name.startswith("image_encoder.trunk"):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return system


def tiny_batch(size: int = 4, start: int = 0) -> Batch:
    """Make random samples; sample i is the same whatever the size."""
    rows = [torch.Generator().manual_seed(start + row) for row in range(size)]
    images = [torch.randint(0, 256, (3, 64, 64), generator=g, dtype=torch.uint8) for g in rows]
    tokens = torch.stack([torch.randint(1, 20, (6,), generator=g) for g in rows])
    lengths = torch.tensor([1 + (start + row) % 6 for row in range(size)])
    positions = torch.arange(start, start + size)
    return Batch(torch.stack(images), tokens, lengths, positions, positions)


_SLOW_TO_IMPORT = ("convert", "evaluate", "generate", "pretrain", "train")


def run_task(
    task: str, *arguments: str, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m t2i_hpc.<task>`` as a person would, without the seconds of importing."""
    if task in _SLOW_TO_IMPORT:
        from tests.support.preloaded import of_commands

        return of_commands().run(task, arguments, cwd, timeout)
    return run_module(task, *arguments, cwd=cwd, timeout=timeout)


def run_module(
    task: str, *arguments: str, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m t2i_hpc.<task>``."""
    return subprocess.run(
        [sys.executable, "-m", f"t2i_hpc.{task}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=timeout,
        env=environment(),
    )


def environment() -> dict[str, str]:
    """Return this process's environment without a launcher's variables."""
    launcher = ("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(launcher)}


def train_tiny(
    shards: Path, runs: Path, *arguments: str, task: Sequence[str] = ("train",)
) -> subprocess.CompletedProcess[str]:
    """Train the tiny system on `shards`, in `runs`; fail the test with its output otherwise."""
    name, *extra = task
    done = run_task(name, *extra, f"data.path={shards}", f"runs={runs}", *TINY, *arguments)
    if done.returncode:
        raise AssertionError(done.stdout + done.stderr)
    return done


def only_run(runs: Path) -> Path:
    """Return the single run directory inside `runs`."""
    (run,) = [path.parent for path in runs.glob("*/config.yaml")]
    return run


def losses_of(run: Path) -> list[dict[str, float]]:
    """Return the losses of every logged step."""
    return [row["losses"] for row in read_json_lines(run / "metrics.jsonl")]
