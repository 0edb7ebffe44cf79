"""The shape of one training step: what systems offer and engines run.

A *system* owns networks and says, as data, in which *phases* one step runs; an *engine* runs
the phases of whatever system it is given. Neither imports the other.

    trainable = {"generator": G, "discriminator": D}
    phases  = [Phase("discriminator", updates=("discriminator",), loss=...),
               Phase("penalty", updates=("discriminator",), loss=...),
               Phase("generator", updates=("generator",), loss=...)]

What phases share within a step (fake images, text features) lives in the step's context,
which the system makes from a batch and which dies with the step.

Settings that would have no effect are refused, in one form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.data.batches import Batch
from t2i_hpc.models.outputs import GeneratedImages


@dataclass(frozen=True)
class Term:
    """One named part of a loss: the value that is logged and its weight in the sum."""

    value: Tensor
    weight: float = 1.0


Losses = Mapping[str, Term]


def total(losses: Losses) -> Tensor:
    """Return the weighted sum of the terms, a scalar with gradient."""
    values = [term.weight * term.value for term in losses.values()]
    return torch.stack([v.to(torch.promote_types(v.dtype, torch.float32)) for v in values]).sum()


@dataclass(frozen=True)
class Phase:
    """One backward pass and one optimizer step of a training step.

    Attributes:
        name: what the phase is called in metrics and errors.
        updates: the parts whose parameters it updates (keys of ``System.trainable``).
        loss: terms of the loss from the step's context; entered once per step.
    """

    name: str
    updates: tuple[str, ...]
    loss: Callable[[Any], Losses]


@dataclass(frozen=True)
class OptimizerSettings:
    """Adam's numbers for one part (learning rate per step, β₁, β₂, ε).

    `clip` bounds the norm of the part's whole gradient, averaged over ranks; None leaves it.
    `learning_rate_at` gives the rate of a step from the images seen before it, instead of
    `learning_rate`; `restart_every` forgets Adam's moments whenever so many images are full.
    Both are functions of images seen alone, so a resumed run needs no other state.
    """

    learning_rate: float
    betas: tuple[float, float]
    epsilon: float = 1e-8
    clip: float | None = None
    learning_rate_at: Callable[[int], float] | None = None
    restart_every: int | None = None


@dataclass(frozen=True)
class EMA:
    """A network whose weights are a running average of another's.

    Its buffers, e.g. the statistics of batch norms, are the other's as they are (AttnGAN's code).

    Attributes:
        source: the network that is trained.
        target: its average, of the same shapes; never trained itself.
        half_life: images after which a weight counts half.
        ramp: in the beginning take half the images seen instead where that is less, so that the
            first weights are soon forgotten; AttnGAN's and DM-GAN's code does not.
    """

    source: nn.Module
    target: nn.Module
    half_life: float
    ramp: bool = True

    @torch.no_grad()
    def update(self, images_seen: int, batch_size: int) -> None:
        """Take in the weights after a step of `batch_size` images; `images_seen` includes it."""
        half_life = min(self.half_life, images_seen / 2) if self.ramp else self.half_life
        share = 1 - 0.5 ** (batch_size / half_life)
        weights = zip(self.target.parameters(), self.source.parameters(), strict=True)
        buffers = zip(self.target.buffers(), self.source.buffers(), strict=True)
        for own, latest in weights:
            own.lerp_(latest, share)
        for kept, newest in buffers:
            kept.copy_(newest)


class System(Protocol):
    """A set of networks and the phases of their training step.

    `modules` holds every network by name (its state dict is the checkpoint); `trainable` names
    the modules that have an optimizer; the other modules are frozen, but for those that
    `emas` keeps.
    """

    modules: nn.ModuleDict
    trainable: Mapping[str, nn.Module]
    optimizers: Mapping[str, OptimizerSettings]
    phases: Sequence[Phase]
    emas: Sequence[EMA]
    noise_width: int
    resolution: int

    def begin(self, batch: Batch, noise: Tensor) -> Any:
        """Make the context of one step from a batch and noise (B, noise_width)."""


@runtime_checkable
class TextToImageSystem(System, Protocol):
    """A system that draws pictures."""

    def generate(self, tokens: Tensor, lengths: Tensor, noise: Tensor) -> GeneratedImages:
        """Draw pictures in evaluation mode, without gradient."""


@runtime_checkable
class RetrievalSystem(System, Protocol):
    """A system that compares images with captions."""

    def match(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return similarities (N, M) of N images with M captions, without gradient.

        Args:
            images: uint8 (N, 3, R, R).
            tokens, lengths: int64 (M, T) and (M,).
        """

    def attend(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return where each word looks in its caption's image, without gradient.

        Args:
            images: uint8 (B, 3, R, R).
            tokens, lengths: int64 (B, T) and (B,).

        Returns:
            (B, T, r, r): for each word a map over the image's regions that sums to 1.
        """


def refuse_settings(given: Mapping[str, bool], why: str) -> None:
    """Refuse the first setting that is given.

    Args:
        given: whether it is, by the key below ``system.``.
        why: what is wrong with it and what to do, as the rest of a sentence.

    Raises:
        ConfigurationError: one is given.
    """
    for key, is_given in given.items():
        if is_given:
            raise ConfigurationError(f"system.{key} {why}")


def trainable(part: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return names and parameters that an optimizer updates, in the module's order."""
    return [(name, p) for name, p in part.named_parameters() if p.requires_grad]
