"""gloo uses the interface that leads to rank 0, unless a person names another."""

from __future__ import annotations

import subprocess
import sys

from t2i_hpc.cluster.local_processes import without_launcher
from t2i_hpc.cluster.network import GLOO, choose_interface, interface_to, without_chosen_interface


def test_the_interface_is_that_of_the_route() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no such host.invalid") is None


def test_a_persons_own_setting_wins() -> None:
    own = {GLOO: "ib0"}
    choose_interface("127.0.0.1", own, local=True)
    assert own == {GLOO: "ib0"}
    assert without_chosen_interface(own) == own


def test_the_loopback_interface_serves_one_node_only() -> None:
    chosen: dict[str, str] = {}
    choose_interface("127.0.0.1", chosen, local=False)
    assert chosen == {}
    choose_interface("127.0.0.1", chosen, local=True)
    assert chosen[GLOO] == "lo"


def test_evaluations_elsewhere_choose_for_themselves() -> None:
    chosen = {"PATH": "/bin"}
    choose_interface("127.0.0.1", chosen, local=True)
    assert without_launcher(chosen) == {"PATH": "/bin"}


# In a process of its own: another test may have left this one in a process group.
ALONE = """
import socket

import torch

from t2i_hpc.training import world
from t2i_hpc.training.rank_info import RankInfo

with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))  # nobody listens
    place = RankInfo(1, 2, 1, 2, "127.0.0.1", listener.getsockname()[1])
    world._join(place, torch.device("cpu"), 0.5)
"""


def test_the_error_names_interface_and_settings() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, check=False
    )
    said = ended.stderr.splitlines()[-1]
    assert said.startswith("t2i_hpc.common.errors.RunError: ")
    assert "did not meet all 2 ranks at 127.0.0.1:" in said
    assert "by the network interface lo: " in said
    assert "GLOO_SOCKET_IFNAME" in said
    assert "NCCL_SOCKET_IFNAME" in said
