"""Finding one's rank from any launcher."""

from __future__ import annotations

import pytest
import torch

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.engine.world import Place, choose_device, expand_tasks, find_place, first_node


def test_nothing_is_one_rank_alone() -> None:
    assert find_place({}) == Place()


def test_torchruns_variables() -> None:
    place = find_place(
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
    assert place == Place(5, 8, 1, 4, "gpu03", 29500)


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
    place = find_place(environment)
    assert (place.rank, place.size, place.local_rank, place.local_size) == (4, 6, 1, 2)
    assert place.address == "gpu03"
    assert 20_000 <= place.port < 40_000
    other = find_place({**environment, "SLURM_STEP_ID": "1"})
    assert other.port != place.port


def test_a_batch_script_without_srun_is_one_rank() -> None:
    assert find_place({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == Place()


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
