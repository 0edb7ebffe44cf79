"""The options of sbatch that settings make, the user's, and what the environment adds."""

from __future__ import annotations

import os
from typing import Any

import pytest

from t2i_hpc.cluster.slurm.options import (
    joined,
    outside_of_jobs,
    partitions_of,
    resource_options,
    user_options,
)
from t2i_hpc.common.errors import ClusterError, ConfigurationError
from t2i_hpc.config.cluster import ClusterConfig, check_cluster


def slurm(**settings: Any) -> ClusterConfig:
    return ClusterConfig(name="slurm", **settings)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"gpus-per-node": "1"}),
        ({"gpus_per_node": 0}, {}),
        ({"gpus_per_node": 4, "gpu_type": "a100"}, {"gpus-per-node": "a100:4"}),
        ({"gpus_per_node": 4, "gpu_type": "a100", "gpus_by": "gres"}, {"gres": "gpu:a100:4"}),
        ({"gpus_per_node": 4, "gpus_by": "gpus-per-task"}, {"gpus-per-task": "1"}),
        ({"gpus_per_node": 0, "memory_per_cpu": 2.5}, {"mem-per-cpu": "2560M"}),
        ({"memory_per_gpu": 40}, {"gpus-per-node": "1", "mem-per-gpu": "40960M"}),
    ],
)
def test_gpus_and_memory(settings: dict[str, Any], options: dict[str, str]) -> None:
    assert resource_options(slurm(**settings)) == options


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"options": ["-x"]}, "cannot read '-x': write --exclude"),
        ({"options": ["-p gpu"]}, "write --partition or --partition=value"),
        ({"options": ["-N2"]}, "write --nodes"),
        ({"options": ["--mail-type END"]}, "write --name or --name=value"),
        ({"options": ["--nodes=2"]}, "set cluster.nodes instead"),
        ({"options": ["--time=5"]}, "set cluster.time instead"),
        ({"options": ["--ntasks=8"]}, "set cluster.tasks_per_node instead"),
        ({"options": ["--cpus-per-gpu=8"]}, "set cluster.cpus_per_task instead"),
        ({"options": ["--no-requeue"]}, "set cluster.on_stop instead"),
        ({"options": ["--gpus-per-node=a100:2"]}, "gpu_type and gpus_by"),
        ({"options": ["--gres=gpu:2"]}, "gpu_type and gpus_by"),
        ({"options": ["--mem-per-cpu=4G"], "memory_per_node": 8}, "cluster.memory_per_node"),
        ({"options": ["--partition=a"], "partition": "b"}, "set cluster.partition instead"),
        ({"options": ["--hold", "--hold"]}, "gives --hold twice"),
        ({"options": ["--array=0-3"]}, "launch makes the arrays"),
        ({"options": ["--parsable"]}, "reads what sbatch prints"),
    ],
)
def test_user_options_that_repeat_a_setting(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ClusterError) as refusal:
        user_options(slurm(**settings))
    assert sentence in str(refusal.value)


def test_user_options_that_no_setting_makes() -> None:
    options = ["--mem-per-cpu=4G", "--partition=a", "--hold", "--gres=nvme:1", "--exclusive=user"]
    own = user_options(slurm(options=options))
    assert list(own.values()) == ["4G", "a", True, "nvme:1", "user"]
    assert user_options(slurm(gpus_per_node=0, options=["--gres=gpu:2"])) == {"gres": "gpu:2"}
    assert joined("afterany:7", "afterok:9") == "afterany:7,afterok:9"
    assert joined(None, "afterok:9") == "afterok:9"


def test_the_partition_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert partitions_of(slurm(partition="a,b")) == ["a", "b"]
    assert partitions_of(slurm(options=["--partition=c"])) == ["c"]
    monkeypatch.setenv("SBATCH_PARTITION", "d")
    assert partitions_of(slurm()) == ["d"]
    assert partitions_of(slurm(partition="a")) == ["a"]


def test_a_job_from_inside_another_one_is_a_job_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = {
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_JWT": "token",
        "SLURM_CLUSTERS": "serial",
        "SBATCH_ACCOUNT": "physics",  # the script says nothing of it
        "SBATCH_GRES": "nvme:1",
    }
    hidden = {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_NODE": "4000",
        "SRUN_CPUS_PER_TASK": "3",
        "SBATCH_MEM_BIND_LIST": "0x1",
        "SBATCH_PARTITION": "tiny",  # sbatch would let it win over the script
        "SBATCH_TIMELIMIT": "5",
        "SBATCH_GPUS": "8",
        "SBATCH_WAIT": "1",
    }
    for name, value in {**kept, **hidden}.items():
        monkeypatch.setenv(name, value)
    script = "#!/bin/bash\n#SBATCH --partition=a\n#SBATCH --time=9\n#SBATCH --gpus-per-node=1\n"
    with outside_of_jobs(script):
        assert {name: os.environ.get(name) for name in kept} == kept
        assert not hidden.keys() & os.environ.keys()
    assert {name: os.environ[name] for name in hidden} == hidden


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"nodes": 4}, "cluster.nodes=4 has no meaning with cluster=local"),
        ({"time": "1:00:00"}, "or add cluster=slurm"),
        ({"name": "slurm", "processes": 2}, "set cluster.nodes and cluster.gpus_per_node instead"),
        (
            {"name": "slurm", "build_partitions": 2},
            "cluster.build_partitions=2 belongs to task=shards",
        ),
        ({"name": "slurm", "gpus_per_node": 0, "gpu_type": "a100"}, "cluster.gpu_type is set"),
        (
            {"name": "slurm", "gpus_per_node": 4, "tasks_per_node": 3, "gpus_by": "gpus-per-task"},
            "cannot be divided by 3 tasks",
        ),
        (
            {"name": "slurm", "memory_per_node": 8, "memory_per_cpu": 1},
            "cluster.memory_per_node and cluster.memory_per_cpu exclude each other",
        ),
    ],
)
def test_settings_without_a_meaning(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        check_cluster(ClusterConfig(**settings), "train")
    assert sentence in str(refusal.value)
    check_cluster(ClusterConfig(dry_run=True, processes=2), "train")
    check_cluster(slurm(build_partitions=2), "shards")
