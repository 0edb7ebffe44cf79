"""A run is its configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from t2i_hpc.common.errors import RunError
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.runs.run_directory import locked, open_run, prepare_run, run_folder, run_identity


def config(*arguments: str) -> TrainConfig:
    return compose_config("train", ["name=test", *arguments], TrainConfig)


def test_what_decides_the_result_decides_the_folder() -> None:
    folder = run_folder(config(), "data")
    assert folder == run_folder(config(), "data")
    assert folder.name.startswith("test-")
    for word in ("seed=2", "system.masks=3", "engine.batch_size=8", "engine.precision=bf16"):
        assert run_folder(config(word), "data") != folder
    assert run_folder(config(), "other data") != folder


@pytest.mark.parametrize(
    ("experiment", "identity"),
    [
        ("cub_ssagan", "460eaa5e"),
        ("cub_dfgan", "945aac48"),
        ("cub_attngan2", "00c1bee8"),
        ("demo_ssagan", "1541bd46"),
    ],
)
def test_runs_of_version_0_2_keep_their_folders(experiment: str, identity: str) -> None:
    """A setting that is added has a value that is no part of the identity (neutral=)."""
    of_today = compose_config("train", [f"experiment={experiment}"], TrainConfig)
    assert run_identity(of_today, "x") == identity
    exact = [f"experiment={experiment}", "engine.precision=fp32"]
    assert run_identity(compose_config("train", exact, TrainConfig), "x") == identity


def test_paths_lengths_and_speeds_do_not() -> None:
    folder = run_folder(config(), "data")
    for word in (
        "engine.images=5",
        "engine.minutes=1",
        "data.path=elsewhere",
        "data.workers=0",
        "engine.log_every=3",
        "engine.checkpoint.keep=7",
        "engine.threads=1",
        "engine.precision=fp32",
        "engine.deterministic=true",
    ):
        assert run_folder(config(word), "data") == folder


def test_a_run_opens_with_its_configuration(tmp_path: Path) -> None:
    written = config("seed=3")
    prepare_run(tmp_path, written, 2, torch.device("cpu"))
    assert open_run(tmp_path) == written
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["world"] == 2
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo-12345678").mkdir()
    (tmp_path / "demo-12345678" / "config.yaml").touch()
    with pytest.raises(RunError, match="say run="):
        open_run(Path())
    with pytest.raises(RunError, match=r"no such folder; runs in .*demo-12345678"):
        open_run(tmp_path / "demo-1234")
    with pytest.raises(RunError, match=r"has no config\.yaml; runs in .*demo-12345678"):
        open_run(tmp_path)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib; from t2i_hpc.runs.run_directory import locked\n"
            "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(RunError, match="another process"), locked(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path):
        pass
