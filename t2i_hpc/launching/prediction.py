"""How long a counted step takes on a card: a roofline for each kernel, and what ranks exchange.

    kernel      = max(FLOPs / rate of products, bytes / rate of memory, a kernel's least time)
    phase       = max(Σ kernels, operations · what the host takes to start one)
    all-reduce  = 2 · (N - 1) / N · bytes / rate of the slowest link + hops · time of a hop
    step        = Σ phases + collectives of layers + gradients that do not hide behind backward
                  + (collectives of layers + phases) · waiting for the last rank to come

Rates are shares of the makers' peaks (``cluster/hardware.py``). Left out are the loader, which is
taken to keep up, checkpoints, and torch.compile, which saves bytes. What ranks wait for each other
is known only where it was measured (``Cluster.waiting``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from t2i_hpc.cluster.hardware import Card, Link
from t2i_hpc.training.step_count import BACKWARD, SHARED, Collective, Kernel, StepCount

# DDP's first bucket is full after a part of the backward pass, and what is sent last hides behind
# nothing. What travels in between is free on a card and not on a CPU, which does both.
_HIDING = 0.4
_BUCKET = 25 * 2**20
# Of DDP for each parameter: its hook, and the copy of the gradient into the bucket.
_PER_GRADIENT = 2


@dataclass(frozen=True)
class Cluster:
    """Ranks and what joins them.

    Attributes:
        card: of each rank.
        node: link of the cards of a node.
        network: link of the nodes; None: not known, and taken to cost nothing.
        per_node: ranks of a node.
        slowdown: of everything, where several ranks share a core.
        waiting: seconds that ranks in lock-step wait at a collective for the last of them.
    """

    card: Card
    node: Link
    network: Link | None
    per_node: int
    slowdown: float = 1.0
    waiting: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """One step of all ranks.

    Attributes:
        images: of all ranks.
        compute: seconds of each phase without any exchange.
        exchange: seconds that ranks wait for exchanges, on top.
        flops: of one rank.
    """

    images: int
    compute: Mapping[str, float]
    exchange: float
    flops: float

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return sum(self.compute.values()) + self.exchange

    @property
    def images_per_second(self) -> float:
        """Images per second of all ranks."""
        return self.images / self.seconds

    @property
    def communication(self) -> float:
        """Share of a step that is spent on exchanges, 0 to 1."""
        return self.exchange / self.seconds


def predict(count: StepCount, cluster: Cluster, precision: str = "auto") -> Prediction:
    """Predict a step.

    Args:
        count: of one rank's step among all ranks.
        cluster: what runs it.
        precision: ``engine.precision``; decides how float32 products are taken.
    """
    device = defaultdict[tuple[str, bool], float](float)
    operations = defaultdict[tuple[str, bool], float](float)
    for kernel, times in count.kernels.items():
        place = kernel.phase, kernel.part == BACKWARD
        device[place] += times * _kernel_seconds(kernel, cluster.card, precision)
        operations[place] += times
    for phase, tensors in count.tensors.items():
        operations[phase, True] += _PER_GRADIENT * tensors
    seconds = {
        place: _phase_seconds(device[place], operations[place], cluster.card) * cluster.slowdown
        for place in device
    }
    compute = defaultdict[str, float](float)
    for (phase, _), value in seconds.items():
        compute[phase] += value
    exchange = sum(
        times * _layer_seconds(collective, count.ranks, cluster)
        for collective, times in count.collectives.items()
    )
    for phase, size in count.gradients.items():
        exchange += _exposed(size, seconds.get((phase, True), 0.0), count.ranks, cluster)
    return Prediction(count.images * count.ranks, dict(compute), exchange, count.flops)


def _kernel_seconds(kernel: Kernel, card: Card, precision: str) -> float:
    rate = 1e12 * card.products * _peak(kernel.arithmetic, card, precision)
    stream = 1e9 * card.streams * card.gigabytes_per_second
    return max(kernel.flops / rate, kernel.bytes / stream, 1e-6 * card.kernel_microseconds)


def _peak(arithmetic: str, card: Card, precision: str) -> float:
    if arithmetic == "bfloat16":
        return card.fp16 if precision == "fp16" else card.bf16
    return card.fp32 if precision == "fp32" else card.tf32


def _phase_seconds(device: float, operations: float, card: Card) -> float:
    host = 1e-6 * card.host_microseconds * operations
    return max(device, host) if card.own_host else device + host


def _layer_seconds(collective: Collective, ranks: int, cluster: Cluster) -> float:
    """Return the time of an exchange that the next layer waits for."""
    ways = 1.0 if collective.kind == "allgather" else 2.0
    moving = _ring_seconds(ways * collective.bytes, ranks, cluster) + _hops(ranks, cluster)
    return moving + cluster.waiting


def _exposed(size: int, backward: float, ranks: int, cluster: Cluster) -> float:
    """Return how much longer a phase takes because its gradients are averaged."""
    travel = _ring_seconds(2.0 * size, ranks, cluster)
    buckets = max(1, math.ceil(size / _BUCKET))
    hops = buckets * _hops(ranks, cluster) + cluster.waiting
    if not cluster.card.own_host:
        return travel + hops
    return max((travel + hops) / buckets, travel + hops - _HIDING * backward)


def _ring_seconds(size: float, ranks: int, cluster: Cluster) -> float:
    """Return the time in which `size` bytes pass the slowest link of a ring over all ranks."""
    rates = [cluster.node] if cluster.per_node > 1 else []
    rate = min((1e9 * link.gigabytes_per_second * link.efficiency for link in rates), default=0.0)
    if ranks > cluster.per_node and cluster.network is not None:
        # As many rings as ports leave a node, each with its share of the bytes.
        network, ports = cluster.network, min(cluster.network.ports, cluster.per_node)
        between = 1e9 * ports * network.gigabytes_per_second * network.efficiency
        rate = min(rate, between) if rate else between
    return size * (ranks - 1) / ranks / rate * cluster.slowdown if rate else 0.0


def _hops(ranks: int, cluster: Cluster) -> float:
    """Return the time of an all-reduce of few bytes: up a tree of the ranks, and down."""
    inside = min(ranks, cluster.per_node)
    hops = 2e-6 * math.ceil(math.log2(inside)) * cluster.node.microseconds
    if ranks > inside and cluster.network is not None:
        nodes = math.ceil(ranks / inside)
        hops += 2e-6 * math.ceil(math.log2(nodes)) * cluster.network.microseconds
    return hops * cluster.slowdown


def phases(prediction: Prediction) -> dict[str, float]:
    """Return the seconds of each phase, what they share first."""
    first = {SHARED: prediction.compute.get(SHARED, 0.0)}
    return first | dict(prediction.compute)
