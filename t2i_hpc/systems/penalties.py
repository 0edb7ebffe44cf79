"""The penalty on a discriminator's slope at matching pairs: which one, how often, how precise.

What every system of matching pairs shares; the settings are those of
:class:`~t2i_hpc.config.systems.PenaltyConfig`.
"""

from __future__ import annotations

from torch import Tensor

from t2i_hpc.config.one_stage_settings import PenaltyConfig
from t2i_hpc.losses.finite_difference import finite_difference_penalty
from t2i_hpc.losses.gradient_penalty import (
    PairDiscriminator,
    PenalizedPairs,
    matching_aware_gradient_penalty,
    zero_centered_penalty,
)
from t2i_hpc.systems.base import Loss, Phase, Term, refuse_settings

_ZERO_CENTERED = ("r1", "r2", "r1r2")


class Penalty:
    """A penalty of matching pairs as a configuration asks for it.

    Attributes:
        active: whether there is one.
        at_real, at_fake: at which images.

    Raises:
        ConfigurationError: settings that would have no effect.
    """

    def __init__(self, config: PenaltyConfig, norm: str = "concatenated") -> None:
        self.config, self.norm = config, norm
        self.active = config.penalty != "none" and config.penalty_weight > 0
        kind = config.penalty if self.active else "none"
        self.at_fake = kind in ("r2", "r1r2")
        self.at_real = self.active and kind != "r2"
        idle = {
            "penalty_every": kind == "none" and config.penalty_every > 1,
            "penalty_precision": kind == "none" and config.penalty_precision is not None,
            "penalty_norm": kind not in ("magp", "none") and norm != "concatenated",
            "penalty_power": kind in _ZERO_CENTERED
            and config.penalty_power != PenaltyConfig.penalty_power,
            "penalty_epsilon": kind != "finite_difference"
            and config.penalty_epsilon != PenaltyConfig.penalty_epsilon,
        }
        why = f"has no effect on system.penalty={kind}: leave it out, or take another penalty"
        refuse_settings(idle, why)

    def pairs(
        self, discriminator: PairDiscriminator, image: Tensor, sentence: Tensor, noise: Tensor
    ) -> PenalizedPairs:
        """Return the penalty, a scalar, with features and logits (B,) of matching pairs.

        Args:
            discriminator: of the pairs.
            image, sentence: pairs (B, 3, R, R) and (B, S).
            noise: (B, Z), each sample's own.
        """
        config, pairs = self.config, (discriminator, image, sentence)
        precision = config.penalty_precision
        if config.penalty == "finite_difference":
            # Differences of logits in bfloat16 would be rounding more than slope.
            precision, epsilon = precision or "tf32", config.penalty_epsilon
            return finite_difference_penalty(*pairs, noise, epsilon=epsilon, precision=precision)
        if config.penalty in _ZERO_CENTERED:
            return zero_centered_penalty(*pairs, precision=precision)
        power = config.penalty_power
        return matching_aware_gradient_penalty(*pairs, power, self.norm, precision=precision)

    def term(self, value: Tensor) -> Term:
        """Weigh the penalty for the steps that leave it out as well (StyleGAN2 §3.1)."""
        return Term(value, self.config.penalty_weight * self.config.penalty_every)

    def phase(
        self,
        name: str,
        loss: Loss,
        between: Loss | None = None,
    ) -> Phase:
        """Return a phase of the discriminator whose `loss` has the penalty, as often as it is due.

        Args:
            name: of the phase.
            loss: with the penalty.
            between: of the steps without it; None: the phase is left out there.
        """
        updates = ("discriminator",)
        if not self.active:
            assert between is not None  # a phase of the penalty alone is not asked for
            return Phase(name, updates, between)
        precision, every = self.config.penalty_precision, self.config.penalty_every
        float32 = None if precision == "bf16" else precision
        return Phase(name, updates, loss, every=every, between=between, float32=float32)
