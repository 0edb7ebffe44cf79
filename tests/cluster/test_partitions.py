"""What a cluster cannot do is refused in one sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest

from t2i_hpc.cluster.slurm.partitions import (
    check_resources,
    longest_array,
    minutes_of,
    read_partitions,
)
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.config.cluster import ClusterConfig
from tests.cluster.clients import Clients

SINFO = """\
gpu*|up|2-00:00:00|4|64|gpu:a100:4(S:0-1),nvme:1
gpu*|up|2-00:00:00|2|32|gpu:v100:2
cpu|up|infinite|10|48+|(null)
old|down|1:00:00|8|16|gpu:8
"""


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("1:30:00", 90),
        ("0:00:01", 1),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("2-00:00:30", 2881),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "tomorrow", "1:2:3:4", "0", "-5"])
def test_what_is_no_time_limit(text: str) -> None:
    with pytest.raises(ClusterError, match="24:00:00"):
        minutes_of(text)


def test_partitions(clients: Clients) -> None:
    clients.answer("sinfo", SINFO)
    gpu, cpu, old = read_partitions()
    assert (gpu.name, gpu.default, gpu.size, gpu.minutes) == ("gpu", True, 6, 2880)
    assert [nodes.gpus for nodes in gpu.nodes] == [4, 2]
    assert (cpu.minutes, cpu.nodes[0].cpus, cpu.nodes[0].gpus) == (math.inf, 48, 0)
    assert not old.up


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"partition": "gpus"}, "did you mean 'gpu'"),
        ({"partition": "old"}, "the partition old takes no jobs now"),
        ({"nodes": 7}, "cluster.nodes=7, but the partition gpu has 6"),
        ({"gpus_per_node": 8}, "cluster.gpus_per_node=8, but nodes of the partition gpu have 4"),
        ({"gpus_per_node": 4, "nodes": 5}, "cluster.gpus_per_node=4, but nodes"),
        ({"partition": "cpu"}, "0 asks for a job on CPUs"),
        ({"gpus_per_node": 4, "cpus_per_task": 17}, "want 68 CPU cores"),
        ({"time": "3-00"}, "over the limit of the partition gpu, 2880 minutes"),
    ],
)
def test_refusals(clients: Clients, settings: dict[str, Any], sentence: str) -> None:
    clients.answer("sinfo", SINFO)
    with pytest.raises(ClusterError) as refusal:
        check_resources(ClusterConfig(name="slurm", **settings), read_partitions())
    assert sentence in str(refusal.value)


def test_one_of_several_partitions_is_enough(clients: Clients) -> None:
    clients.answer("sinfo", SINFO)
    settings: dict[str, Any] = {"gpus_per_node": 0, "nodes": 10}
    check_resources(ClusterConfig(partition="gpu,cpu", **settings), read_partitions())


def test_the_longest_array(clients: Clients) -> None:
    clients.answer("scontrol", "Configuration data\nMaxArraySize            = 4\n")
    assert longest_array() == 4


def test_without_slurm_and_with_a_silent_one(clients: Clients) -> None:
    with pytest.raises(ClusterError, match="sinfo is not installed here"):
        read_partitions()
    clients.answer("sinfo", "sinfo: error: Unable to contact slurm controller", 1)
    with pytest.raises(ClusterError, match=r"sinfo got no answer .error: Unable to contact"):
        read_partitions()
    clients.answer("sinfo", "sinfo: fatal: Could not establish a configuration source", 1)
    with pytest.raises(ClusterError, match=r"sinfo finds no configuration .* SLURM_CONF"):
        read_partitions()
