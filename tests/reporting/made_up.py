"""A made-up run directory, with the files an engine writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from t2i_hpc.common.files import append_json_line, write_json, write_text
from t2i_hpc.sampling.grids import mask_grid, picture_grid, save_picture

CAPTIONS = ["a red circle", "a square & a <b>star</b>, blue on a white background"]
CONFIG = """\
name: demo
system:
  name: ssa_gan
  resolution: 64
data:
  name: emoji <script>alert(1)</script>
"""


def make_run(folder: Path, *, steps: int = 40, grids: int = 3, scores: int = 3) -> Path:
    """Write a run of 100 images a step with `grids` sample and mask grids, `scores` scores."""
    write_text(folder / "config.yaml", CONFIG)
    write_json(
        folder / "run.json",
        {
            "name": "demo-1a2b3c4d",
            "created": "2026-01-02T03:04:05+00:00",
            "versions": {"torch": "2.9.0"},
            "git": {"commit": "0123456789", "state": "clean"},
            "hardware": "x86_64 CPU, 2 cores",
            "world": 2,
        },
    )
    for step in range(1, steps + 1):
        append_json_line(folder / "metrics.jsonl", metrics_row(step))
    for place in range(grids):
        add_grids(folder, place * 1000)
    for place in range(scores):
        append_json_line(folder / "scores.jsonl", score_row(place * 1000, 90.0 / (place + 1)))
    return folder


def metrics_row(step: int) -> dict[str, Any]:
    return {
        "images": 100 * step,
        "step": step,
        "seconds": 2.5 * step,
        "images_per_second": 40.0 + math.sin(step),
        "data_wait": 0.02,
        "losses": {
            "discriminator/real": 1 / step,
            "discriminator/fake": 0.5 + 1 / step,
            "generator/adversarial": -0.1 * step,
        },
        "gradient_norms": {"discriminator/discriminator": 1.5, "generator/generator": 0.25},
        "learning_rates": {"discriminator": 4e-4, "generator": 1e-4},
        "milliseconds": {"shared": 20.0, "discriminator": 50.0, "generator": 30.0},
    }


def score_row(images: int, value: float, **changes: str | int) -> dict[str, Any]:
    return {
        "images": images,
        "metric": "FD (EfficientNet-Lite0)",
        "value": value,
        "better": "lower",
        "n": 1157,
        "n_real": 1157,
        "protocol": "abc123def456",
        "protocol_text": {"seed": 1, "images": 1157},
        "checkpoint": "f" * 64,
        "detector_label": "EfficientNet-Lite0 on ImageNet",
        **changes,
    }


def add_grids(folder: Path, images: int, rows: int = 2, columns: int = 4) -> None:
    pictures = random_pictures(rows * columns, images)
    masks = [torch.rand(rows, 1, side, side) for side in (4, 16, 32)]
    name = f"{images:010d}.png"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "samples" / "captions.json").write_text(json.dumps(CAPTIONS[:rows]))
    save_picture(picture_grid(pictures, columns, CAPTIONS[:rows]), folder / "samples" / name)
    save_picture(mask_grid(pictures[::columns], masks), folder / "masks" / name)


def random_pictures(count: int, seed: int, side: int = 32) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=numbers, dtype=torch.uint8)
