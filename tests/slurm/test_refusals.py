"""What Slurm would refuse, or does, is said in one sentence; nothing stays behind in the queue."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.jobs import SCRIPTS, launch
from tests.slurm.lab import Lab
from tests.support.training import TINY


def jobs_of(lab: Lab) -> set[str]:
    return set(lab.run("squeue", "--states=all", "--noheader", "--format=%i").split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("cluster.partition=mian",), "did you mean 'main'"),
        (("cluster.nodes=3", "engine.batch_size=6"), "the partition main has 2"),
        (("cluster.partition=tiny", "cluster.time=20"), "over the limit of the partition tiny"),
        (("cluster.gpus_per_node=2",), "0 asks for a job on CPUs"),
        (("cluster.nodes=2", "cluster.tasks_per_node=3"), "cannot be divided by 6 ranks"),
        (("cluster.options=['--reservation=ours']",), "sbatch refused: "),
        (("cluster.options=[-x]",), "cannot read '-x'"),
        (("cluster.constraint=h100",), "sbatch refused: "),
        (("data.path=/nowhere",), "/nowhere"),
        (("system.text_encoder.weights=/nowhere",), "there is no such file"),
        (("runs=/dev/shm/runs",), "lies in the memory of this machine"),
        (("seed=1,2",), "add --sweep"),
    ],
)
def test_refusals(
    lab: Lab, shards: Path, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    jobs = jobs_of(lab)
    done = launch(lab, f"data.path={shards}", f"runs={tmp_path}", *TINY, *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1, done.err
    assert sentence in done.err
    assert jobs_of(lab) == jobs


def test_the_batch_script_can_be_seen_before(lab: Lab, shards: Path, tmp_path: Path) -> None:
    jobs = jobs_of(lab)
    mine = tmp_path / "mine" / "cluster"
    mine.mkdir(parents=True)
    own = "defaults: [slurm]\naccount: physics\nsetup: [module load cuda]\n"
    (mine / "ours.yaml").write_text(own)
    words = (f"--config-dir={mine.parent}", "cluster=ours", "cluster.dry_run=true")
    done = launch(lab, *words, f"data.path={shards}", f"runs={tmp_path / 'runs'}", *TINY)
    assert done.code == 0, done.err
    for line in ("#SBATCH --requeue", "module load cuda", "#SBATCH --account=physics", "srun "):
        assert line in done.out
    assert jobs_of(lab) == jobs
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_slurm_takes_every_script(lab: Lab, script: str) -> None:
    on_cpus = ("--gpus-per-node=0", "--cpus-per-task=1", "--array=0")
    lab.run("sbatch", "--test-only", *on_cpus, str(SCRIPTS / script))


def test_a_cluster_that_takes_no_jobs_is_said(lab: Lab, shards: Path, tmp_path: Path) -> None:
    lab.run("scontrol", "update", "PartitionName=tiny", "State=DOWN")
    try:
        words = (f"data.path={shards}", f"runs={tmp_path}", *TINY, "cluster.partition=tiny")
        assert "takes no jobs now" in launch(lab, *words).err
    finally:
        lab.run("scontrol", "update", "PartitionName=tiny", "State=UP")
