"""Random numbers depend on (seed, purpose, index) alone."""

from __future__ import annotations

import torch

from t2i_hpc.common.seeds import generator, noise, seed_step


def test_a_row_does_not_depend_on_its_neighbors() -> None:
    whole = noise(3, "noise", range(10), 16)
    assert torch.equal(noise(3, "noise", [7, 2], 16), whole[[7, 2]])
    assert noise(3, "noise", [], 16).shape == (0, 16)


def test_seed_purpose_and_index_all_matter() -> None:
    base = generator(1, "crop", 5).integers(1 << 60)
    assert base == generator(1, "crop", 5).integers(1 << 60)
    others = [generator(2, "crop", 5), generator(1, "flip", 5), generator(1, "crop", 6)]
    assert all(base != other.integers(1 << 60) for other in others)


def test_noise_is_standard_normal() -> None:
    values = noise(1, "noise", range(200), 100)
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.02


def test_steps_have_their_own_dropout() -> None:
    def draw(seed: int, images: int) -> float:
        seed_step(seed, images)
        return float(torch.rand(()))

    assert draw(1, 24) == draw(1, 24)
    assert len({draw(1, 24), draw(1, 48), draw(2, 24)}) == 3
