"""The released recipe of pre-training: rates, restarts, clipping, and where an epoch ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.systems import DAMSMPretrainingConfig
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.systems import build_system
from t2i_hpc.systems.damsm_pretraining import falling
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.session import with_epoch
from t2i_hpc.training.step import train_step
from tests.support.training import tiny_batch
from tests.systems.test_damsm import ALONE, ENCODERS, settings, system


def test_the_learning_rate_falls_as_the_reference_loop_does() -> None:
    """The loop of the released code, written out: × 0.98 after an epoch above a tenth."""
    rate_at = falling(0.002, 0.98, 0.1, epoch=100)
    rate = 0.002
    for epoch in range(140):
        assert rate_at(100 * epoch) == rate_at(100 * epoch + 99) == pytest.approx(rate, rel=1e-12)
        if rate > 0.002 / 10:
            rate *= 0.98
    assert rate_at(10**9) == pytest.approx(rate)
    assert falling(0.002, 1.0, 0.1, 100)(10**9) == 0.002


def test_rate_and_moments_follow_the_images_seen() -> None:
    config = replace(settings(), learning_rate_decay=0.5, epoch_images=8)
    encoders = system(config)
    strategy = DDPStrategy(encoders, ALONE)
    rates, steps = [], []
    for seen in range(0, 20, 4):
        train_step(strategy, tiny_batch(4, seen), torch.empty(4, 0), seen)
        for optimizer in strategy.optimizers.values():
            rates.append(optimizer.param_groups[0]["lr"])
            steps += [int(state["step"]) for state in list(optimizer.state.values())[:1]]
    assert rates == [r for r in (2e-3, 2e-3, 1e-3, 1e-3, 5e-4) for _ in range(2)]
    assert steps == [s for s in (1, 2, 1, 2, 1) for _ in range(2)]


def test_moments_are_kept_where_they_are_to_be() -> None:
    encoders = system(replace(settings(), epoch_images=4, restart_moments=False))
    strategy = DDPStrategy(encoders, ALONE)
    for seen in range(0, 12, 4):
        train_step(strategy, tiny_batch(4, seen), torch.empty(4, 0), seen)
    state = next(iter(strategy.optimizers["text_encoder"].state.values()))
    assert int(state["step"]) == 3


def test_only_the_text_encoders_gradient_is_clipped() -> None:
    config = settings()
    config.text_encoder.clip = 1e-3
    encoders = system(config)
    train_step(DDPStrategy(encoders, ALONE), tiny_batch(), torch.empty(4, 0))
    norms = {
        name: torch.stack([p.grad.norm() for p in part.parameters() if p.grad is not None]).norm()
        for name, part in encoders.trainable.items()
    }
    assert norms["text_encoder"] == pytest.approx(1e-3, rel=1e-3)
    assert norms["image_heads"] > 1e-2


def test_the_experiments_are_the_released_recipe() -> None:
    for name, tokens, epoch in (("cub_encoders", 18, 8855), ("coco_encoders", 15, 82783)):
        config = compose_config("pretrain", [f"experiment={name}"], TrainConfig)
        chosen = config.system
        assert isinstance(chosen, DAMSMPretrainingConfig)
        assert (config.data.max_tokens, config.engine.batch_size) == (tokens, 48)
        assert round(chosen.resolution * config.data.resize_ratio) == 355
        assert (chosen.damsm.gamma1, chosen.damsm.gamma2, chosen.damsm.gamma3) == (4, 5, 10)
        assert (chosen.text_encoder.clip, chosen.restart_moments) == (0.25, True)
        assert (chosen.learning_rate, chosen.beta1, chosen.beta2) == (0.002, 0.5, 0.999)
        assert (chosen.learning_rate_decay, chosen.learning_rate_floor) == (0.98, 0.1)
        assert config.engine.images % epoch == 0


def test_pretrain_takes_the_epoch_from_the_split(shards: Path) -> None:
    overrides = [f"data.path={shards}", *ENCODERS]
    config = with_epoch(compose_config("pretrain", overrides, TrainConfig))
    assert isinstance(config.system, DAMSMPretrainingConfig)
    assert config.system.epoch_images == 24
    given = compose_config("pretrain", [*overrides, "system.epoch_images=7"], TrainConfig)
    assert with_epoch(given) == given
    with pytest.raises(ConfigurationError, match="takes system=damsm"):
        with_epoch(compose_config("pretrain", ["system=ssa_gan"], TrainConfig))
    with pytest.raises(ConfigurationError, match=r"start with t2i_hpc\.pretrain"):
        build_system(replace(settings(), epoch_images=None), 20)
