"""The wheel is complete: it runs in an empty environment, from another folder."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.training import TINY, environment

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(folder),
            str(CHECKOUT),
        ],
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel alone and borrows its dependencies from ours."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Appended to sys.path, so that the wheel's own packages come first; as plain folders they
    # carry no editable installation of the checkout along.
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def run(python: Path, folder: Path, *words: str) -> str:
    done = subprocess.run(
        [str(python), *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_code_configuration_and_demo_data_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "t2i_hpc/py.typed",
        "t2i_hpc/configs/experiment/demo.yaml",
        "t2i_hpc/configs/experiment/coco_ssagan.yaml",
        "t2i_hpc/shards_demo/train/manifest.json",
        "t2i_hpc/shards_demo/vocabulary.json",
        "t2i_hpc/shards_demo/NOTICE",
        "t2i_hpc/data/build/sources/cub_species_split.json",
        "t2i_hpc/reporting/page.css",
    ):
        assert needed in names
    assert not [name for name in names if "tests" in name or "__pycache__" in name]


def test_it_trains_elsewhere_on_its_own_demo_data(python: Path, tmp_path: Path) -> None:
    where = run(python, tmp_path, "-c", "import t2i_hpc; print(t2i_hpc.__file__)").strip()
    assert Path(where).is_relative_to(python.parent.parent)
    words = ("experiment=demo", *TINY, "engine.images=8")
    text = run(python, tmp_path, "-m", "t2i_hpc.train", *words)
    assert "1,157 samples of demo" in text
    folder = run(python, tmp_path, "-m", "t2i_hpc.train", "--print-run", *words).strip()
    assert (tmp_path / folder / "checkpoints" / "0000000008").is_dir()
