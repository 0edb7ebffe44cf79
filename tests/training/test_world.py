"""Finding one's rank from any launcher."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from t2i_hpc.cluster.local_processes import free_port
from t2i_hpc.cluster.network import ports
from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.training.rank_info import RankInfo, expand_tasks, find_rank, first_node
from t2i_hpc.training.world import choose_device, refuse_shared


def test_nothing_is_one_rank_alone() -> None:
    assert find_rank({}) == RankInfo()


def test_torchruns_variables() -> None:
    place = find_rank(
        {
            "RANK": "5",
            "WORLD_SIZE": "8",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "4",
            "MASTER_ADDR": "gpu03",
            "MASTER_PORT": "29500",
            "SLURM_STEP_ID": "0",
            "SLURM_NTASKS": "2",
        }
    )
    assert place == RankInfo(5, 8, 1, 4, "gpu03", 29500)


def test_sruns_variables() -> None:
    environment = {
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": "6",
        "SLURM_PROCID": "4",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_STEP_NODELIST": "gpu[03-05]",
        "SLURM_STEP_TASKS_PER_NODE": "3,2,1",
    }
    place = find_rank(environment)
    assert (place.rank, place.size, place.local_rank, place.local_size) == (4, 6, 1, 2)
    assert place.address == "gpu03"
    assert 20_000 <= place.port < 32_768
    other = find_rank({**environment, "SLURM_STEP_ID": "1"})
    assert other.port != place.port


def test_a_rank_left_in_the_environment_is_refused_under_srun() -> None:
    step = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2"}
    with pytest.raises(ConfigurationError, match=r"srun started 2 tasks, but RANK=0 .* unset RANK"):
        find_rank({**step, "RANK": "0", "WORLD_SIZE": "1"})
    # torchrun once a node, by srun: more ranks than tasks.
    assert find_rank({**step, "RANK": "5", "WORLD_SIZE": "8"}).size == 8


def test_ports_are_none_of_outgoing_connections(tmp_path: Path) -> None:
    setting = tmp_path / "ip_local_port_range"
    assert ports(setting) == range(20_000, 32_768)
    ends = {"32768\t60999\n": 32_768, "25000 60999": 25_000, "1024 65535": 32_768}
    for text, end in ends.items():
        setting.write_text(text)
        assert ports(setting) == range(20_000, end)
    with socket.socket() as listener:
        port = free_port()
        listener.bind(("127.0.0.1", port))
        assert port in ports()


def test_mpis_variables() -> None:
    open_mpi = {
        "OMPI_COMM_WORLD_RANK": "5",
        "OMPI_COMM_WORLD_SIZE": "8",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
        # mpirun started its helpers by srun, one a node
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
    }
    with pytest.raises(ConfigurationError, match="MASTER_ADDR and MASTER_PORT do not say"):
        find_rank(open_mpi)
    meeting = {"MASTER_ADDR": "gpu03", "MASTER_PORT": "29500"}
    assert find_rank(open_mpi | meeting) == RankInfo(5, 8, 1, 4, "gpu03", 29500)
    pmi = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
    assert find_rank(pmi | meeting) == RankInfo(2, 4, 0, 2, "gpu03", 29500)
    assert find_rank({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}) == RankInfo()


def test_srun_that_speaks_pmi_is_srun() -> None:
    environment = {
        "PMI_RANK": "1",
        "PMI_SIZE": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "1",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }
    assert find_rank(environment).address == "n1"


def test_two_ranks_on_one_device_are_named() -> None:
    refuse_shared(["GPU a of n1", "GPU b of n1", "GPU a of n2"])
    with pytest.raises(ConfigurationError, match="ranks 0 and 2 are both on GPU a of n1"):
        refuse_shared(["GPU a of n1", "GPU b of n1", "GPU a of n1"])


def test_a_batch_script_without_srun_is_one_rank() -> None:
    assert find_rank({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == RankInfo()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-05,9],x1", "gpu03"),
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("rack2-[7,9]", "rack2-7"),
        ("a[1-2]-ib", "a1-ib"),
    ],
)
def test_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_tasks_per_node() -> None:
    assert expand_tasks("2(x3),1") == [2, 2, 2, 1]


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(ConfigurationError, match="device=cpu"):
            choose_device("cuda")
