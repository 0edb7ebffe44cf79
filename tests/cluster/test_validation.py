"""A job that a cluster cannot run is refused in one sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest

from t2i_hpc.cluster.slurm.validation import check_job, longest_array, minutes_of, read_partitions
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
    assert (gpu.name, gpu.default, gpu.minutes) == ("gpu", True, 2880)
    assert gpu.nodes == (
        "4 nodes of 64 CPUs and gpu:a100:4(S:0-1),nvme:1",
        "2 nodes of 32 CPUs and gpu:v100:2",
    )
    assert (cpu.minutes, cpu.nodes) == (math.inf, ("10 nodes of 48+ CPUs",))
    assert not old.up


@pytest.mark.parametrize(
    "resources", ["gpu:ampere:6(S:0-1),gpu:1g.10gb:28(S:0-1)", "gpu:8(S:0-3)", "shard:8,gpu:a40:2"]
)
def test_a_refusal_shows_gpus_as_slurm_names_them(clients: Clients, resources: str) -> None:
    clients.answer("sinfo", f"any*|up|infinite|1|64|{resources}")
    clients.answer("sbatch", "no", 1)
    with pytest.raises(ClusterError) as refusal:
        check_job(ClusterConfig(name="slurm"), SCRIPT)
    assert f"the partition any has 1 nodes of 64 CPUs and {resources}; " in str(refusal.value)


SCRIPT = "#!/bin/bash\n#SBATCH --time=5\n"
ACCEPTED = "sbatch: Job 5 to start at 2026-11-28T05:34:01 using 1 processors on nodes n1"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"partition": "gpus"}, "did you mean 'gpu'"),
        ({"partition": "old"}, "the partition old takes no jobs now"),
        ({"time": "3-00"}, "over the limit of the partition gpu, 2880 minutes"),
    ],
)
def test_what_sbatch_takes_no_notice_of(
    clients: Clients, settings: dict[str, Any], sentence: str
) -> None:
    clients.answer("sinfo", SINFO)
    clients.answer("sbatch", ACCEPTED)
    with pytest.raises(ClusterError) as refusal:
        check_job(ClusterConfig(name="slurm", **settings), SCRIPT)
    assert sentence in str(refusal.value)
    assert not any(call.startswith("sbatch") for call in clients.calls)


def test_slurm_itself_says_whether_a_job_could_run(clients: Clients) -> None:
    clients.answer("sinfo", SINFO)
    clients.answer("sbatch", ACCEPTED)
    check_job(ClusterConfig(name="slurm", cpus_per_task=999), SCRIPT)
    assert clients.calls[-1] == "sbatch --test-only"
    refused = "allocation failure: Requested node configuration is not available"
    clients.answer("sbatch", refused, 1)
    with pytest.raises(ClusterError) as refusal:
        check_job(ClusterConfig(name="slurm", nodes=2, partition="cpu"), SCRIPT)
    text = str(refusal.value)
    assert text.startswith(f"sbatch refused: {refused}: asked for 2 nodes with 6 CPUs")
    assert "the partition cpu has 10 nodes of 48+ CPUs (cluster.gpus_per_node=0: no GPUs)" in text
    assert "cluster.check=false" in text


def test_one_of_several_partitions_is_enough(clients: Clients) -> None:
    clients.answer("sinfo", SINFO)
    (clients.folder / "sbatch").write_text(
        "#!/bin/bash\n[[ $* == *--partition=cpu* ]] || { echo no >&2; exit 1; }\n"
    )
    (clients.folder / "sbatch").chmod(0o755)
    check_job(ClusterConfig(partition="gpu,cpu"), SCRIPT)
    with pytest.raises(ClusterError, match="sbatch refused: no"):
        check_job(ClusterConfig(partition="gpu"), SCRIPT)


def test_a_silent_controller_refuses_nothing_by_itself(clients: Clients) -> None:
    clients.answer("sinfo", SINFO)
    clients.answer("sbatch", "allocation failure: Unable to contact slurm controller", 1)
    with pytest.raises(ClusterError, match="sbatch got no answer"):
        check_job(ClusterConfig(), SCRIPT)


def test_headings_and_notices_are_no_partitions(clients: Clients) -> None:
    clients.answer("sinfo", "CLUSTER: serial\na notice\nstd*|up|1-00:00:00|4|64+|gpu:a100:4\n")
    (partition,) = read_partitions()
    assert (partition.name, partition.minutes) == ("std", 1440)
    assert partition.nodes == ("4 nodes of 64+ CPUs and gpu:a100:4",)
    clients.answer("sinfo", "std*|up|soon|many|some|(null)\n")
    assert read_partitions()[0].minutes == math.inf


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
