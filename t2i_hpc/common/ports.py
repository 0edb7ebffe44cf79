"""Ports to meet at, none of which the system gives to outgoing connections."""

from __future__ import annotations

from pathlib import Path

_FIRST_PORT = 20_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_EPHEMERAL = 32_768  # Linux's default


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
