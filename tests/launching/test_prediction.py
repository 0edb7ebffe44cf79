"""Predicted times follow the figures of cards and links."""

from __future__ import annotations

from dataclasses import replace

import pytest

from t2i_hpc.cluster.hardware import (
    cards,
    find_card,
    find_network,
    links,
    recognize_card,
)
from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.launching.prediction import Cluster, Prediction, predict
from t2i_hpc.training.step_count import (
    BACKWARD,
    FORWARD,
    Collective,
    Kernel,
    StepCount,
)

pytestmark = pytest.mark.usefixtures("of_no_group")

H100 = find_card("h100")
PRODUCT = Kernel("generator", FORWARD, "bfloat16", 10**12, 10**6)
COPY = Kernel("generator", BACKWARD, "float32", 0, 10**10)


def predicted(count: StepCount, network: str = "ib400", per_node: int = 8) -> Prediction:
    cluster = Cluster(H100, links()[H100.node_link], find_network(network), per_node)
    return predict(count, cluster, "bf16")


def test_a_kernel_takes_what_its_products_or_its_bytes_take() -> None:
    count = StepCount(64, 1, {PRODUCT: 4, COPY: 1}, {}, {})
    by_hand = 4e12 / (H100.products * 989.4e12) + 1e10 / (H100.streams * 3350e9)
    made = predicted(count)
    assert made.seconds == pytest.approx(by_hand)
    assert made.images_per_second == pytest.approx(64 / by_hand)
    assert made.communication == 0


def test_small_kernels_take_as_long_as_the_host_needs_to_start_them() -> None:
    small = Kernel("generator", FORWARD, "float32", 10, 10)
    count = StepCount(2, 1, {small: 1000}, {}, {})
    assert predicted(count).seconds == pytest.approx(1e-3 * H100.host_microseconds)
    core = replace(H100, own_host=False, kernel_microseconds=0.0)  # which starts and computes
    made = predict(count, Cluster(core, links()["nvlink4"], None, 1))
    assert made.seconds == pytest.approx(1e-3 * H100.host_microseconds, rel=0.01)


def test_gradients_hide_behind_a_long_backward_and_a_slow_network_shows() -> None:
    gradients = {"generator": 400_000_000}
    layers = {Collective("generator", FORWARD, "allreduce", 4096): 50}
    one, many = (StepCount(8, n, {PRODUCT: 50, COPY: 50}, layers, gradients) for n in (8, 64))
    shares = [
        predicted(one).communication,
        predicted(many, "8xib400").communication,
        predicted(many, "ib400").communication,
        predicted(many, "eth10").communication,
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.02
    assert shares[-1] > 0.5
    assert predicted(many).images == 8 * 64


def test_what_ranks_wait_for_each_other_and_what_ddp_does_for_each_gradient() -> None:
    layers = {Collective("generator", FORWARD, "allreduce", 4): 50}
    core = replace(H100, own_host=False, kernel_microseconds=0.0)
    cluster = Cluster(core, links()["nvlink4"], None, 2)
    count = StepCount(2, 2, {COPY: 1}, layers, {"generator": 4})
    free = predict(count, cluster)
    waited = predict(count, replace(cluster, waiting=1e-3))
    assert waited.exchange - free.exchange == pytest.approx(51e-3)  # layers, and the phase's end
    assert waited.compute == free.compute
    each = predict(replace(count, tensors={"generator": 100}), cluster)
    assert each.seconds - free.seconds == pytest.approx(200 * 1e-6 * core.host_microseconds)


def test_cards_are_known_by_the_names_that_slurm_and_torch_give_them() -> None:
    for name in ("h100", "H100", "nvidia_h100_80gb_hbm3", "NVIDIA H100 80GB HBM3"):
        assert recognize_card(name) == H100
    assert recognize_card("a100-sxm4-80gb") == find_card("a100")
    assert recognize_card("gpu") is None
    names = [name for card in cards().values() for name in (card.name, *card.also)]
    assert len(names) == len(set(names))
    assert all(links()[card.node_link].scope == "node" for card in cards().values())
    assert find_network("4xib200").ports == 4
    with pytest.raises(ConfigurationError, match="did you mean 'h100'"):
        find_card("h1000")
    with pytest.raises(ConfigurationError, match="link nvlink4 is not in the table"):
        find_network("nvlink4")
