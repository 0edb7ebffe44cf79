"""Learning rates and moments that follow the images seen.

What changes over a training is set before every step from the number of images seen, the one
integer from which a run resumes: there is no scheduler with a state of its own to save.
"""

from __future__ import annotations

import math

import torch

from t2i_hpc.common.step import OptimiserSettings
from t2i_hpc.config.engine import ScheduleConfig
from t2i_hpc.engine.engines.optimisers import forget_moments


def learning_rate(settings: OptimiserSettings, schedule: ScheduleConfig, images_seen: int) -> float:
    """Return a part's learning rate of the step after `images_seen` images."""
    rate = settings.learning_rate
    if settings.learning_rate_at is not None:
        rate = settings.learning_rate_at(images_seen)
    return rate * factor(schedule, images_seen)


def factor(schedule: ScheduleConfig, images_seen: int) -> float:
    """Return what every learning rate is multiplied with after `images_seen` images.

    It grows linearly from 0 over the warm-up, counted from the first image on, and falls over
    ``decay_images`` images after it down to ``floor``, where it stays.
    """
    if images_seen < schedule.warmup_images:
        return (images_seen + 1) / (schedule.warmup_images + 1)
    if schedule.decay == "none":
        return 1.0
    share = min(1.0, (images_seen - schedule.warmup_images) / schedule.decay_images)
    fallen = share if schedule.decay == "linear" else (1 - math.cos(math.pi * share)) / 2
    return 1.0 - (1.0 - schedule.floor) * fallen


def restarts(settings: OptimiserSettings, images_seen: int, batch_size: int) -> bool:
    """Whether a part's moments are forgotten before the step after `images_seen` images."""
    period = settings.restart_every or 0
    return bool(period) and images_seen // period > (images_seen - batch_size) // period


def keep_schedule(
    optimiser: torch.optim.Optimizer,
    settings: OptimiserSettings,
    schedule: ScheduleConfig,
    images_seen: int,
    batch_size: int,
) -> None:
    """Give an optimiser the learning rate of the step to come, and a new start where one is due.

    Args:
        optimiser: of one part; its moments are forgotten at the first step of each period of
            ``settings.restart_every`` images.
        settings: the part's.
        schedule: warm-up and decay of all parts.
        images_seen: before the step.
        batch_size: images of a step, over all ranks.
    """
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(settings, schedule, images_seen)
    if restarts(settings, images_seen, batch_size):
        forget_moments(optimiser)
