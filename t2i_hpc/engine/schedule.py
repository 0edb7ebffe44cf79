"""Learning rates and moments that follow the images seen.

What changes over a training is set before every step from the number of images seen, the one
integer from which a run resumes: there is no scheduler with a state of its own to save.
"""

from __future__ import annotations

import torch

from t2i_hpc.common.step import OptimiserSettings


def keep_schedule(
    optimiser: torch.optim.Optimizer, settings: OptimiserSettings, images_seen: int, batch_size: int
) -> None:
    """Give an optimiser the learning rate of the step to come, and a new start where one is due.

    Args:
        optimiser: of one part; its moments are forgotten at the first step of each period of
            ``settings.restart_every`` images.
        settings: the part's.
        images_seen: before the step.
        batch_size: images of a step, over all ranks.
    """
    if settings.learning_rate_at is not None:
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate_at(images_seen)
    if settings.restart_every and _begins(images_seen, batch_size, settings.restart_every):
        optimiser.state.clear()


def _begins(images_seen: int, batch_size: int, period: int) -> bool:
    """Whether the step after `images_seen` is the first that starts in its period."""
    return images_seen // period > (images_seen - batch_size) // period
