"""Moments of the training images' features, which a training by the Fréchet distance aims at.

They are measured once, before the first step: the ranks pass the first samples of the stream
through the network, each its slice, cropped and flipped as the training will see them. Which
samples these are follows from the data and the seed alone, and sums are float64, so any number of
ranks finds the same. Checkpoints hold the moments: a resumed run measures nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor

from t2i_hpc.common.collectives import all_reduce
from t2i_hpc.data.loader import Loader
from t2i_hpc.systems.base import System
from t2i_hpc.systems.encoders import scale_images
from t2i_hpc.training.precision import Precision
from t2i_hpc.training.world import World

_TOLD_EVERY = 30.0  # seconds


def aims_at_moments(system: Any) -> bool:
    """Whether a system, or its configuration, trains by the Fréchet distance."""
    return bool(getattr(getattr(system, "config", system), "fd_weight", 0.0))


def warning_of_gamed_scores(system: Any) -> str:
    """Return what to know of the scores of a system that trains by them; "" of any other."""
    if not aims_at_moments(system):
        return ""
    return (
        "warning: system.fd_weight trains the generator on a Fréchet distance, so distances fall "
        "whether its images improve or not (FID can be gamed): trust other judges, R-precision "
        "and the pictures"
    )


def measure_real_moments(
    system: System,
    loader: Loader,
    samples: int | None,
    *,
    world: World,
    precision: str,
    say: Callable[[str], None],
) -> None:
    """Measure a system's real moments; all ranks call it.

    Args:
        system: that trains by the Fréchet distance, on the world's device.
        loader: makes this rank's batches.
        samples: of an epoch; None: nobody knows.
        world: this rank's place.
        precision: of the training: rounding is then the same on both sides of the distance.
        say: tells people.

    Raises:
        UserError: an image cannot be read.
    """
    term = getattr(system, "frechet")  # noqa: B009 (systems of other kinds have none)
    count = min(term.real_images, samples or term.real_images)
    width = len(term.moments.scale)
    sums = torch.zeros(width, dtype=torch.float64, device=world.device)
    products = torch.zeros(width, width, dtype=torch.float64, device=world.device)
    started = told = time.monotonic()
    with torch.no_grad(), contextlib.closing(_images(loader, count, world)) as given:
        for done, images in given:
            with Precision(precision, world.device).autocast():
                features = term.features(scale_images(images)).double()
            sums += features.sum(0)
            products += features.T @ features
            if time.monotonic() - told > _TOLD_EVERY:
                told = time.monotonic()
                say(f"features of real images: {min(done, count):,} of {count:,}")
    if world.size > 1:
        all_reduce(sums)
        all_reduce(products)
    term.moments.set_real(count, sums, products)
    say(
        f"the generator aims at the features of {count:,} training images "
        f"({time.monotonic() - started:.0f} s)"
    )


def _images(loader: Loader, count: int, world: World) -> Generator[tuple[int, Tensor], None, None]:
    """Yield a rank's images of the first `count` positions, and how many all ranks have had."""
    done = 0
    with contextlib.ExitStack() as stack:
        batches = loader.batches(0)
        if isinstance(batches, Generator):
            stack.callback(batches.close)  # its processes end with it
        for batch in batches:
            world.set_stage(f"features of real images, {done:,} of {count:,}")
            first = batch.positions < count
            done += len(batch.images) * world.size
            yield done, batch.images[first].to(world.device, non_blocking=True)
            if done >= count:
                return
