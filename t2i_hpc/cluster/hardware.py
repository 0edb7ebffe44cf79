"""The figures of cards and links: what an estimate of speed begins with.

``cards.csv`` and ``links.csv`` beside this file are the tables; a line more is a card more.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from t2i_hpc.common.errors import ConfigurationError, nearest

_TABLES = Path(__file__).parent


@dataclass(frozen=True)
class Card:
    """A GPU, or a CPU core that stands for one.

    Attributes:
        name: as ``cluster.card`` takes it.
        fp32, tf32, bf16, fp16: dense TFLOP/s of matrix products.
        memory_gigabytes: of its memory, 10⁹ bytes.
        gigabytes_per_second: of its memory, read or written.
        node_link: name of what joins the cards of a node.
        also: other names, in small letters and digits alone.
        products, streams: share of the peaks that large convolutions and large copies reach.
        kernel_microseconds: that a kernel takes at least.
        host_microseconds: in which the host gives the card one more operation.
        own_host: the host computes beside the card; else the two take turns.
    """

    name: str
    fp32: float
    tf32: float
    bf16: float
    fp16: float
    memory_gigabytes: float
    gigabytes_per_second: float
    node_link: str
    also: tuple[str, ...] = ()
    products: float = 0.5
    streams: float = 0.8
    kernel_microseconds: float = 2.5
    host_microseconds: float = 7.0
    own_host: bool = True


@dataclass(frozen=True)
class Link:
    """What joins cards.

    Attributes:
        name: e.g. ``nvlink4``, ``ib400``.
        scope: ``node`` joins the cards of a node, ``network`` the nodes.
        gigabytes_per_second: one way, of one card or one port.
        efficiency: share of it that large all-reduces reach.
        microseconds: that one hop of a small collective takes.
        ports: of a node.
    """

    name: str
    scope: str
    gigabytes_per_second: float
    efficiency: float
    microseconds: float
    ports: int = 1


@cache
def cards() -> dict[str, Card]:
    """Return the known cards by name."""
    return {
        row["name"]: Card(
            row["name"],
            float(row["fp32"]),
            float(row["tf32"]),
            float(row["bf16"]),
            float(row["fp16"]),
            float(row["memory_gigabytes"]),
            float(row["gigabytes_per_second"]),
            row["node_link"],
            tuple(row["also"].split()),
        )
        for row in _rows("cards.csv")
    }


@cache
def links() -> dict[str, Link]:
    """Return the known links by name."""
    return {
        row["name"]: Link(
            row["name"],
            row["scope"],
            float(row["gigabytes_per_second"]),
            float(row["efficiency"]),
            float(row["microseconds"]),
        )
        for row in _rows("links.csv")
    }


def find_card(name: str) -> Card:
    """Return a card of the table.

    Raises:
        ConfigurationError: it is not there; names the nearest.
    """
    card = recognize_card(name)
    if card is None:
        raise ConfigurationError(
            f"card {name} is not in the table of cards: {nearest(name, cards())}"
        )
    return card


def recognize_card(name: str) -> Card | None:
    """Return the card that a type of Slurm's, a feature or torch calls so; None: not known."""
    wanted = _plain(name)
    return next((c for c in cards().values() if wanted in (_plain(c.name), *c.also)), None)


def find_network(name: str) -> Link:
    """Return what joins nodes: ``ib400``, or ``4xib400`` for nodes of four ports.

    Raises:
        ConfigurationError: it is not there; names the nearest.
    """
    ports, _, kind = name.rpartition("x") if re.fullmatch(r"\d+x.+", name) else ("1", "", name)
    known = {key: link for key, link in links().items() if link.scope == "network"}
    if kind not in known or int(ports) < 1:
        raise ConfigurationError(
            f"link {name} is not in the table of links: {nearest(kind, known)} (4xib400 for nodes "
            "of four ports)"
        )
    return replace(known[kind], ports=int(ports))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]|nvidia|tesla|geforce", "", name.lower())


def _rows(name: str) -> list[dict[str, str]]:
    with (_TABLES / name).open(encoding="utf-8") as stream:
        return list(csv.DictReader(line for line in stream if not line.startswith("#")))
