"""The command `launch` on a machine without Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import JobRecord, record_jobs
from t2i_hpc.launch import main
from tests.support.training import TINY


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.mark.usefixtures("no_slurm")
def test_a_machine_that_cannot_submit_says_so(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("cluster=slurm", f"data.path={shards}", f"runs={tmp_path / 'runs'}", *TINY)
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "sbatch is not installed here" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("no_slurm")
def test_a_dry_run_needs_no_slurm(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also of a run that jobs of another machine have worked on."""
    arguments = (f"data.path={shards}", f"runs={tmp_path / 'runs'}", *TINY, "cluster=slurm")
    jobs = JobRecord("7", "x", "train", (), "", "log", {}, "now")
    assert main([*arguments, "--print-run"]) == 0
    record_jobs(Path(capfd.readouterr().out.strip()), [jobs])
    for more, arrays in (((), 0), (("--sweep", "seed=1,2"), 1)):
        assert main([*arguments, *more, "cluster.dry_run=true"]) == 0
        out, err = capfd.readouterr()
        assert out.count("#SBATCH --array=0-1") == arrays
        assert "#SBATCH --requeue" in out
        assert err == "sbatch is not installed here: nobody knows whether the cluster takes this\n"


def test_a_sweep_on_this_machine_is_done_once(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--sweep", "seed=1,2", "engine.images=4", f"data.path={shards}", *TINY)
    assert main([*arguments, f"runs={tmp_path}"]) == 0
    out, _ = capfd.readouterr()
    assert "1 of 2: " in out
    assert "2 of 2: " in out
    assert len(list(tmp_path.glob("*/checkpoints/0000000004"))) == 2
    assert main([*arguments, f"runs={tmp_path}"]) == 0
    assert "nothing is left to do" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--sweep", "task=evaluate", "checkpoint=1,2"), "--sweep takes task=train"),
        (("--sweep", "seed=1"), "several values"),
        (("seed=1,2",), "add --sweep"),
        (("--sweep", "seed=1,2", "--print-config"), "leave out --sweep"),
        (("cluster.on_stop=wait",), "cluster.on_stop=wait is not offered"),
        (("cluster.nodes=4",), "cluster.nodes=4 has no meaning with cluster=local"),
        (("--follow",), "--follow shows the log of a Slurm job"),
        (("--follow", "cluster=slurm", "cluster.dry_run=true"), "leave it out of a dry run"),
        (
            ("cluster=slurm", "cluster.build_partitions=4"),
            "cluster.build_partitions=4 belongs to task=shards",
        ),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    _, err = capfd.readouterr()
    assert err.count("\n") == 1
    assert sentence in err


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        (("seed=1",), ["python -m t2i_hpc.train seed=1 "]),
        (
            ("--sweep", "seed=1,2", "cluster.processes=2"),
            ["python -m t2i_hpc.train seed=1 ", "python -m t2i_hpc.train seed=2 "],
        ),
    ],
)
def test_a_dry_run_starts_nothing_on_this_machine(
    shards: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    commands: list[str],
) -> None:
    data = (f"data.path={shards}", f"runs={tmp_path / 'runs'}", *TINY)
    assert main([*arguments, *data, "cluster.dry_run=true"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.startswith(start) for line, start in zip(lines, commands, strict=True)]
    assert all(line.endswith("  # 2 processes") for line in lines) == (len(lines) == 2)
    assert not (tmp_path / "runs").exists()


def test_the_run_is_printed_and_not_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("experiment=demo", f"runs={tmp_path}", "--print-run")
    assert main(arguments) == 0
    assert Path(capsys.readouterr().out.strip()).parent == tmp_path
    assert not list(tmp_path.iterdir())
    assert main(("--sweep", "seed=1,2", *arguments)) == 2
    assert "are for one run" in capsys.readouterr().err
