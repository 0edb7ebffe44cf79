"""A node that cannot take part is named before any work is done."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist

from t2i_hpc.common.errors import RunError
from t2i_hpc.training.rank_info import RankInfo
from t2i_hpc.training.world import check_devices, check_group

PLACE = RankInfo(3, 8, 1, 4)
HERE = f"rank 3 on {socket.gethostname()}"


def test_a_network_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(total: torch.Tensor, group: object = None) -> None:
        raise RuntimeError("NCCL error: remote process exited\nand much more")

    monkeypatch.setattr(dist, "all_reduce", fail)
    with pytest.raises(RunError, match=rf"{HERE} \(cpu\) failed .*remote process exited\)"):
        check_group(PLACE, torch.device("cpu"))


def test_a_wrong_sum_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda total, group=None: total.fill_(7))
    with pytest.raises(RunError, match=rf"{HERE} \(cpu\) computed 7 .*not 8"):
        check_group(PLACE, torch.device("cpu"))
    monkeypatch.setattr(dist, "all_reduce", lambda total, group=None: total.fill_(8))
    check_group(PLACE, torch.device("cpu"))


def test_ranks_on_processors_share_them() -> None:
    group: dist.ProcessGroup = None  # type: ignore[assignment]  # nothing is asked of it
    check_devices(PLACE, torch.device("cpu"), group)
