"""What the job reserves that merges the shards of others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.cluster.jobs import Plan, Work, read_jobs
from t2i_hpc.cluster.slurm import submission
from t2i_hpc.cluster.slurm.current_job import read_current_job
from t2i_hpc.cluster.slurm.options import cluster_of
from t2i_hpc.cluster.slurm.submission import batch_scripts
from t2i_hpc.cluster.slurm.successors import ensure_successor
from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.launch import main
from tests.cluster.clients import Clients
from tests.commands.trained import make_run

# Refuses scripts of which nothing asks for a GPU, as a partition of GPUs may.
SBATCH = """#!/bin/bash
echo sbatch "$@" >> {calls}
file="${{@: -1}}"
[[ -f $file ]] || file=/dev/stdin
if [[ -e {folder}/only-gpus && $(<$file) != *--gpus-per-node* ]]; then
  echo "sbatch: error: this partition takes jobs with GPUs" >&2
  exit 1
fi
[[ $* == *--test-only* ]] && exit 0
mapfile -t calls < {calls}
echo "Submitted batch job $((500 + ${{#calls[@]}}))"
"""


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clients:
    """An empty queue."""
    made = Clients(tmp_path / "bin", monkeypatch)
    made.answer("scontrol", "MaxArraySize = 100")
    made.answer("sinfo", "gpu*|up|infinite|4|64|gpu:4")
    for name in ("squeue", "sacct", "srun"):
        made.answer(name)
    (made.folder / "sbatch").write_text(
        SBATCH.format(calls=made.folder / "calls", folder=made.folder)
    )
    (made.folder / "sbatch").chmod(0o755)
    return made


@pytest.fixture
def arguments(shards: Path, tmp_path: Path) -> list[str]:
    run = make_run(tmp_path / "birds", shards)
    return [
        *("task=evaluate", "cluster=slurm", f"run={run}", "evaluation=demo", "evaluation.shards=2"),
        *("cluster.cpus_per_task=1", "cluster.gpus_per_node=4", "cluster.tasks_per_node=1"),
        *("evaluation.metrics=[fid]", "cluster.memory_per_gpu=8", "cluster.on_stop=chain"),
    ]


@pytest.mark.parametrize(
    ("useful", "merge_gpus", "reserved"), [(0, None, 0), (1, None, 1), (1, 0, 0), (0, 1, 1)]
)
def test_a_merge_reserves_a_gpu_only_where_it_computes(
    tmp_path: Path,
    useful: int,
    merge_gpus: int | None,
    reserved: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submission, "longest_array", lambda: 1000)  # no Slurm is asked
    shard = Work("evaluate", ("evaluation.shards=2",), tmp_path)
    merge = Work("evaluate", ("evaluation.merge=true",), tmp_path, merge_gpus=useful)
    cluster = ClusterConfig(name="slurm", gpus_per_node=4, memory_per_gpu=8, merge_gpus=merge_gpus)
    plans = [
        Plan("evaluate", (shard, shard), tmp_path, merge),
        Plan("evaluate", (merge,), tmp_path),  # all that is left
    ]
    (array, first), ((_, second),) = (list(batch_scripts(plan, cluster)) for plan in plans)
    assert "--gpus-per-node=4" in array[1]
    assert "--ntasks-per-node=4" in array[1]
    for script in (first[1], second):
        assert "--ntasks-per-node=1\n" in script
        assert ("--gpus-per-node=1\n" in script) == bool(reserved)
        assert bool(re.search("--[a-z-]*gpu", script)) == bool(reserved)
        assert f"--mem{'-per-gpu' if reserved else ''}=8192M\n" in script


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"gpu_type": "a100", "gpus_by": "gres", "options": ["--gres=nvme:1"]}, ["--gres=nvme:1"]),
        ({"options": ["--gpu-bind=closest", "--exclusive=user"]}, ["--exclusive=user"]),
        ({"options": ["--mem-per-gpu=40G"]}, ["--mem=40G"]),
        ({"gpus_per_node": 0, "options": ["--gres=gpu:a100:2,nvme:1"]}, ["--gres=nvme:1"]),
        ({"gpus_per_node": 0, "options": ["--gpus=2"]}, []),
    ],
)
def test_nothing_else_asks_for_the_gpus_that_a_merge_does_not_use(
    settings: dict[str, Any], options: list[str]
) -> None:
    cluster = cluster_of(Work("evaluate", (), Path(), merge_gpus=0), ClusterConfig(**settings))
    assert (cluster.gpus_per_node, cluster.gpu_type, cluster.options) == (0, "", options)


def test_where_the_shards_have_no_gpus_a_merge_has_none() -> None:
    cluster = ClusterConfig(gpus_per_node=0, options=["--gpus=1"])
    own = cluster_of(Work("evaluate", (), Path(), merge_gpus=1), cluster)
    assert (own.gpus_per_node, own.options) == (0, ["--gpus=1"])  # GPUs are left to the options


def test_the_next_job_of_a_merge_reserves_the_same(
    clients: Clients, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments) == 0
    *_, shard, merge = read_jobs(tmp_path / "birds")
    assert [each.cluster["gpus_per_node"] for each in (shard, merge)] == [4, 0]
    monkeypatch.setenv("SLURM_JOB_ID", merge.job)
    successor = ensure_successor(read_current_job(tmp_path / "birds"))
    script = (tmp_path / "birds" / "jobs" / f"{successor.job}_submission.sh").read_text()
    assert "--mem=8192M\n" in script
    assert not re.search("--[a-z-]*gpu", script)
    assert successor.cluster == merge.cluster
    assert len([call for call in clients.calls if call.startswith("sbatch --test-only")]) == 2


def test_a_partition_that_needs_gpus_is_named_before_anything_is_submitted(
    clients: Clients, arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (clients.folder / "only-gpus").touch()
    assert main(arguments) == 2
    err = capfd.readouterr().err
    assert "this partition takes jobs with GPUs" in err
    assert "set cluster.merge_gpus=1" in err
    assert not read_jobs(tmp_path / "birds")
    assert main([*arguments, "cluster.merge_gpus=1"]) == 0
    assert read_jobs(tmp_path / "birds")[-1].cluster["gpus_per_node"] == 1
