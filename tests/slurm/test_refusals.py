"""What Slurm would refuse, or does, is said in one sentence; nothing stays behind in the queue."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.jobs import SCRIPTS, launch, wait_until
from tests.slurm.lab import Lab
from tests.support.training import TINY


def jobs_of(lab: Lab) -> set[str]:
    return set(lab.run("squeue", "--states=all", "--noheader", "--format=%i").split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("cluster.partition=mian",), "did you mean 'main'"),
        (("cluster.nodes=3", "engine.batch_size=6"), "the partition main has 2 nodes of"),
        (("cluster.cpus_per_task=999",), "Requested node configuration is not available"),
        (("cluster.partition=tiny", "cluster.time=20"), "over the limit of the partition tiny"),
        (("cluster.gpus_per_node=2",), "(cluster.gpus_per_node=0: no GPUs)"),
        (("cluster.nodes=2", "cluster.tasks_per_node=3"), "cannot be divided by 6 ranks"),
        (("cluster.options=['--reservation=ours']",), "sbatch refused: "),
        (("cluster.options=[-x]",), "cannot read '-x'"),
        (("cluster.options=['--nodes=2']",), "set cluster.nodes instead"),
        (("cluster.gpu_type=a100",), "cluster.gpus_per_node=0"),
        (("cluster.constraint=h100",), "sbatch refused: "),
        (("data.path=/nowhere",), "/nowhere"),
        (("system.text_encoder.weights=/nowhere",), "there is no such file"),
        (("runs=/dev/shm/runs",), "is in the memory of this machine"),
        (("seed=1,2",), "add --sweep"),
    ],
)
def test_refusals(
    lab: Lab, shards: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    jobs = jobs_of(lab)
    done = launch(lab, f"data.path={shards}", f"runs={tmp_path}", *TINY, *arguments)
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
    arguments = (f"--config-dir={mine.parent}", "cluster=ours", "cluster.dry_run=true")
    done = launch(lab, *arguments, f"data.path={shards}", f"runs={tmp_path / 'runs'}", *TINY)
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
        arguments = (f"data.path={shards}", f"runs={tmp_path}", *TINY, "cluster.partition=tiny")
        assert "takes no jobs now" in launch(lab, *arguments).err
    finally:
        lab.run("scontrol", "update", "PartitionName=tiny", "State=UP")


def test_a_check_can_be_left_out(lab: Lab, shards: Path, tmp_path: Path) -> None:
    """A node is down for now: sbatch would let the job wait, its test refuses it."""
    lab.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    arguments = (f"data.path={shards}", f"runs={tmp_path}", *TINY, "cluster.nodes=2")
    try:
        assert "cluster.check=false submits it all the same" in launch(lab, *arguments).err
        hold = ("cluster.check=false", "cluster.options=['--hold']")
        done = launch(lab, *arguments, *hold)
        assert done.code == 0, done.err
    finally:
        lab.run("scancel", "--user=root", "--state=PENDING")
        lab.run("scontrol", "update", "NodeName=n2", "State=RESUME")
        wait_until(lambda: lab.takes_jobs("n2"), "n2 takes jobs again")


def test_one_partition_of_a_list_is_enough(lab: Lab, shards: Path, tmp_path: Path) -> None:
    arguments = (f"data.path={shards}", f"runs={tmp_path}", *TINY, "cluster.nodes=2")
    done = launch(lab, *arguments, "cluster.partition='tiny,main'", "cluster.dry_run=true")
    assert done.code == 0, done.err


def test_an_outer_partition_does_not_override(
    lab: Lab, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lab.environment, "SBATCH_PARTITION", "tiny")
    monkeypatch.setitem(lab.environment, "SLURM_MEM_PER_CPU", "1")
    arguments = (f"data.path={shards}", f"runs={tmp_path}", *TINY, "cluster.partition=main")
    done = launch(lab, *arguments, "cluster.options=['--hold','--mem-per-cpu=2G']")
    assert done.code == 0, done.err
    names = lab.run("squeue", "-h", "--states=PENDING", "--format=%P %r %m").splitlines()
    assert names == ["main JobHeldUser 2G"]
    lab.run("scancel", "--user=root", "--state=PENDING")
