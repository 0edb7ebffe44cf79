"""docs/how-to/new-system.md, as it stands there: its file is written and its commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.one_stage_settings import SSAGANConfig
from t2i_hpc.systems import register_system
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from tests.support.training import only_run

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "how-to" / "new-system.md").read_text(encoding="utf-8")
SMALL = (
    "system.resolution=64",
    "system.generator_width=2",
    "system.discriminator_width=2",
    "system.text_encoder.width=16",
    "engine.batch_size=4",
    "engine.images=8",
    "engine.device=cpu",
    "engine.threads=1",
    "data.workers=0",
)
SMALLER = {"generate": ("device=cpu",), "evaluate": ("device=cpu", "evaluation.images=8")}


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_text_runs(tmp_path: Path, shards: Path) -> None:
    code = block("python")
    assert len(code.splitlines()) <= 60
    (tmp_path / "least_squares.py").write_text(code, encoding="utf-8")
    train, *later = [line for line in block("sh").splitlines() if line.startswith("python ")]
    overrides = [w for w in train.split()[1:] if not w.startswith(("data=", "engine.", "system.r"))]
    type_in(tmp_path, *overrides, *SMALL, f"data.path={shards}")
    run = only_run(tmp_path / "runs")
    for line in later:  # one generates, the other evaluates
        overrides = line.replace("runs/run-…", str(run)).split()[1:]
        type_in(tmp_path, *overrides, *SMALLER[overrides[1]])
    terms = {"D/real", "D/fake", "G/adversarial"}
    assert all(set(row["losses"]) == terms for row in read_json_lines(run / "metrics.jsonl"))
    assert (run / "samples" / "0000000008.png").is_file()


def type_in(folder: Path, *overrides: str) -> None:
    done = subprocess.run(
        [sys.executable, *overrides],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is a system ssa_gan already"):
        register_system("ssa_gan", SSAGANConfig, OneStageGAN)
    with pytest.raises(ConfigurationError, match="SSAGANConfig is another system's"):
        register_system("mine", SSAGANConfig, OneStageGAN)
