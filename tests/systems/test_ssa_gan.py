"""SSA-GAN as a system: who gets gradients from which phase, and what a step does."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.systems import build_system
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch, tiny_config, tiny_system

CPU = World(0, 1, 0, 1, torch.device("cpu"))


def test_phases_follow_the_training_of_the_text_encoder() -> None:
    def names(training: str) -> list[str]:
        return [phase.name for phase in tiny_system(training, damsm=0.1).phases]

    assert names("frozen") == ["discriminator", "penalty", "generator"]
    assert names("damsm") == ["discriminator", "penalty", "encoders", "generator"]
    assert names("joint") == ["discriminator", "penalty", "generator"]
    joint = tiny_system("joint", 0.1).phases[-1].updates
    assert joint == ("generator", "text_encoder", "image_heads")


def test_a_frozen_text_encoder_stays_as_it_is_and_the_rest_moves() -> None:
    system = tiny_system("frozen")
    before = {name: value.clone() for name, value in system.modules.state_dict().items()}
    train_step(DDPStrategy(system, CPU), tiny_batch(), torch.randn(4, 100))
    moved = {
        name.split(".")[0]
        for name, value in system.modules.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"generator", "discriminator"}


def test_the_step_reports_unweighted_terms() -> None:
    system = tiny_system("frozen", damsm=0.05)
    values = train_step(DDPStrategy(system, CPU), tiny_batch(), torch.randn(4, 100))
    assert set(values) == {
        "discriminator/real",
        "discriminator/mismatch",
        "discriminator/fake",
        "penalty/gradient",
        "generator/adversarial",
        "generator/damsm_image_to_words",
        "generator/damsm_words_to_image",
        "generator/damsm_image_to_sentence",
        "generator/damsm_sentence_to_image",
    }
    assert all(bool(value.isfinite()) and not value.requires_grad for value in values.values())


def test_the_penalty_lets_adam_see_zeros() -> None:
    system = tiny_system("frozen")
    strategy = DDPStrategy(system, CPU)
    train_step(strategy, tiny_batch(), torch.randn(4, 100))
    steps = {int(state["step"]) for state in strategy.optimizers["discriminator"].state.values()}
    assert steps == {2}


def test_bf16_stays_near_fp32() -> None:
    values = []
    for precision in ("fp32", "bf16"):
        strategy = DDPStrategy(tiny_system("frozen"), CPU, EngineConfig(precision=precision))
        noise = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
        values.append(train_step(strategy, tiny_batch(), noise))
    for name, exact in values[0].items():
        assert abs(float(values[1][name]) - float(exact)) < 0.05 * max(1.0, abs(float(exact)))


def test_drawing_is_deterministic_and_ignores_neighbors() -> None:
    system = tiny_system()
    batch, noise = tiny_batch(), torch.randn(4, 100)
    whole = system.generate(batch.tokens, batch.lengths, noise).images[-1]
    one = system.generate(batch.tokens[2:3], batch.lengths[2:3], noise[2:3]).images[-1]
    assert whole.shape == (4, 3, 64, 64)
    assert torch.allclose(whole[2:3], one, atol=1e-5)
    assert not whole.requires_grad


def test_values_that_do_not_fit_are_refused(tmp_path: object) -> None:
    config = tiny_config()
    config.masks = 9
    with pytest.raises(ConfigurationError, match="9 masks do not fit"):
        build_system(config, 20)


def test_inception_without_weights_is_refused_with_advice() -> None:
    config = tiny_config(damsm=0.1)
    config.image_encoder.name = "inception_v3"
    with pytest.raises(ConfigurationError, match=r"damsm\.weight=0"):
        build_system(config, 20)


def test_text_encoder_weights_come_from_their_file(tmp_path: object) -> None:
    path = f"{tmp_path}/text.safetensors"
    source = tiny_system().text_encoder
    save_file(source.state_dict(), path)
    config = tiny_config()
    config.text_encoder.weights = path
    loaded = build_system(config, 20).modules["text_encoder"].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in source.state_dict().items())
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        build_system(config, 21)
    config.text_encoder.weights = f"{tmp_path}/none.safetensors"
    with pytest.raises(ConfigurationError, match=r"none\.safetensors"):
        build_system(config, 20)
