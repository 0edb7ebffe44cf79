"""Where ranks meet: the network interface that leads to the others, and ports that stay free.

gloo takes the interface that the host's name resolves to. On many systems that is 127.0.1.1, which
no other node reaches, and the ranks wait for each other until the timeout.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Mapping, MutableMapping
from pathlib import Path

GLOO = "GLOO_SOCKET_IFNAME"
_CHOSEN = "T2I_HPC_SOCKET_IFNAME"  # what was chosen here, not by a person
_SIOCGIFADDR = 0x8915
_ANY_PORT = 9
_FIRST_PORT = 20_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_EPHEMERAL = 32_768  # Linux's default


def choose_interface(address: str, environment: MutableMapping[str, str], local: bool) -> None:
    """Let gloo use the interface that leads to `address`, unless the environment names one.

    Args:
        address: of rank 0.
        environment: is read by gloo.
        local: whether all ranks are on this node, so that the loopback interface serves.
    """
    if GLOO in environment:
        return
    name = interface_to(address)
    if name is not None and (local or name != "lo"):
        environment[GLOO] = environment[_CHOSEN] = name


def without_chosen_interface(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what :func:`choose_interface` put there.

    A job that is submitted from here runs on other nodes, whose interfaces have other names.
    """
    kept = dict(environment)
    if kept.pop(_CHOSEN, None) == kept.get(GLOO, ""):
        del kept[GLOO]
    return kept


def interface_to(address: str) -> str | None:
    """Return the name of the interface that packets to an address leave by, None if unknown."""
    with contextlib.suppress(OSError):
        for family, kind, _, _, place in socket.getaddrinfo(
            address, _ANY_PORT, type=socket.SOCK_DGRAM
        ):
            with socket.socket(family, kind) as probe:
                probe.connect(place)  # sends nothing
                own = ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
            for _, name in socket.if_nameindex():
                if own in _addresses_of(name):
                    return name
    return None


def ports(setting: Path = _EPHEMERAL) -> range:
    """Return the ports that ranks may choose from, the same on all nodes of a cluster.

    A port that an outgoing connection happens to have cannot be listened on.

    Args:
        setting: where Linux says which ports it gives to outgoing connections.
    """
    try:
        first = int(setting.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = _FIRST_EPHEMERAL
    end = min(first, _FIRST_EPHEMERAL)
    # Where a site gives out nearly all ports there is no better range than the usual one.
    return range(_FIRST_PORT, end if end > _FIRST_PORT + 1000 else _FIRST_EPHEMERAL)


def _addresses_of(name: str) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return an interface's addresses, as Linux tells them."""
    found: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", name.encode())
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        found.add(ipaddress.IPv4Address(answer[20:24]))
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, owner = line.split()
            if owner == name:
                found.add(ipaddress.IPv6Address(bytes.fromhex(digits)))
    return found
