"""The step leaves out work that the plain order of operations does, and only that."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.batches import Size
from benchmarks.step import build_step, count_flops

# Mask predictors as narrow as the rest, so that the parts weigh as at the published width.
SMALL = Size(width=8, resolution=64, batch=2, damsm=False, mask_width=12)


def test_a_step_costs_a_fifth_less_than_the_plain_one() -> None:
    """0.800; with any one of the savings left out 0.808 or more.

    Of these 0.002 are sums that modulation writes as matrix products, which the counter counts.
    """
    ours, plain = (count_flops(build_step(variant, SMALL)) for variant in ("ours", "plain"))
    assert ours / plain < 0.803


def test_a_merged_step_costs_less_still() -> None:
    merged = replace(SMALL, schedule="merged")
    both, one = (count_flops(build_step("ours", size)) for size in (SMALL, merged))
    assert one < 0.97 * both
