"""What a system is, what all GANs share, and the shape of one training step.

A *system* owns networks and says, as data, in which *phases* one step runs; a strategy runs the
phases of whatever system it is given. Neither imports the other.

    trainable = {"generator": G, "discriminator": D}
    phases  = [Phase("discriminator", updates=("discriminator",), loss=...),
               Phase("penalty", updates=("discriminator",), loss=...),
               Phase("generator", updates=("generator",), loss=...)]

What phases share within a step (fake images, text features) is in the step's context, which the
system makes from a batch and which dies with the step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.encoder_settings import TextEncoderConfig
from t2i_hpc.config.gan_settings import GANConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.models import GeneratedImages

if TYPE_CHECKING:  # what reads runs takes this module too, and needs no networks
    from t2i_hpc.models.image_encoder import ImageEncoder
    from t2i_hpc.models.text_encoder import TextEncoder, TextFeatures


@dataclass(frozen=True)
class Term:
    """One named part of a loss: the value that is logged and its weight in the sum."""

    value: Tensor
    weight: float = 1.0


Losses = Mapping[str, Term]
Loss = Callable[[Any], Losses]


def total(losses: Losses) -> Tensor:
    """Return the weighted sum of the terms, a scalar with gradient."""
    values = [term.weight * term.value for term in losses.values()]
    return torch.stack([v.to(torch.promote_types(v.dtype, torch.float32)) for v in values]).sum()


@dataclass(frozen=True)
class SplitLoss:
    """A loss whose parts share no network's forward, e.g. of real images and of fake ones.

    With ``engine.split_losses`` each part has a backward of its own before the next is entered, so
    that the graph of one at a time is there. The gradients add up to those of the whole.

    Attributes:
        whole: all terms at once; may enter a network once for the inputs of all parts.
        parts: give the same terms between them, in the order of their running statistics.
    """

    whole: Loss
    parts: tuple[Loss, ...]

    def __call__(self, context: Any) -> Losses:
        """Return the terms of the whole."""
        return self.whole(context)


@dataclass(frozen=True)
class PreparedLoss:
    """A loss of what a function makes of the context, which stays eager where the rest is compiled.

    For what torch cannot compile, e.g. an LSTM over packed captions.

    Attributes:
        prepare: gives what the loss is of, with graph.
        loss: the rest.
    """

    prepare: Callable[[Any], Any]
    loss: Loss

    def __call__(self, context: Any) -> Losses:
        """Return the terms of the loss."""
        return self.loss(self.prepare(context))


@dataclass(frozen=True)
class Phase:
    """One loss and one optimizer step of a training step.

    Attributes:
        name: what the phase is called in metrics and errors.
        updates: the modules whose parameters it updates (keys of ``System.trainable``).
        loss: terms of the loss from the step's context; entered once per step. A
            :class:`SplitLoss` may be entered part by part.
        redraw: gives the context again with the generator's graph, for a loss that goes back
            through it. With it a step of several micro-batches begins without graph and keeps
            images alone; running statistics must not move a second time.
        every: the phase runs in each step whose number, from 0, this divides.
        between: the loss of the steps in between; None: the phase is left out there.
        float32: what products that stay float32 are computed in, ``fp32`` by IEEE or ``tf32``;
            None: what the engine's precision says.
    """

    name: str
    updates: tuple[str, ...]
    loss: Loss
    redraw: Callable[[Any], Any] | None = None
    every: int = 1
    between: Loss | None = None
    float32: str | None = None


def phases_of_step(phases: Sequence[Phase], step: int) -> Iterator[Phase]:
    """Give the phases that run in step number `step`, from 0, in order.

    The number follows from the images seen, so any world and any session has the same.
    """
    for phase in phases:
        if step % phase.every == 0:
            yield phase
        elif phase.between is not None:
            yield replace(phase, loss=phase.between)


@dataclass(frozen=True)
class OptimizerSettings:
    """Adam's numbers for one module (learning rate per step, β₁, β₂, ε).

    `clip` bounds the norm of the module's whole gradient, averaged over ranks; None: no clip.
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
    """A network whose weights are the exponential moving average of another's.

    Its buffers, e.g. the statistics of batch norms, are the other's as they are (AttnGAN's code).

    Attributes:
        source: the network that is trained.
        target: its average, of the same shapes; never trained itself.
        half_life: images after which a weight counts half.
        ramp: begin with half the images seen as half-life where that is less, so that the
            first weights are soon forgotten; AttnGAN's and DM-GAN's code does not.
    """

    source: nn.Module
    target: nn.Module
    half_life: float
    ramp: bool = True

    @torch.no_grad()
    def update(self, images_seen: int, batch_size: int) -> None:
        """Follow a step of `batch_size` images; `images_seen` includes them."""
        half_life = min(self.half_life, images_seen / 2) if self.ramp else self.half_life
        decay = 0.5 ** (batch_size / half_life)
        # A kernel for many tensors each, not one for each of hundreds.
        own: list[Tensor] = list(self.target.parameters())
        latest: list[Tensor] = list(self.source.parameters())
        torch._foreach_lerp_(own, latest, 1 - decay)
        kept, newest = list(self.target.buffers()), list(self.source.buffers())
        if kept:
            torch._foreach_copy_(kept, newest)


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
class StepBeginner(Protocol):
    """A system that hears of each step before its micro-batches begin."""

    def begin_step(self, images_seen: int) -> None:
        """Begin a step; `images_seen` before it."""


@runtime_checkable
class TextToImageSystem(System, Protocol):
    """A system that generates images of captions."""

    def generate(self, tokens: Tensor, lengths: Tensor, noise: Tensor) -> GeneratedImages:
        """Generate images in evaluation mode, without gradient."""


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
        """Return each word's attention over its caption's image, without gradient.

        Args:
            images: uint8 (B, 3, R, R).
            tokens, lengths: int64 (B, T) and (B,).

        Returns:
            (B, T, r, r): for each word a map over the image's regions that sums to 1.
        """


class GAN:
    """A text-to-image system: a generator, discriminators and a text encoder.

    A subclass hands its networks to `__init__` in the order in which they draw their first
    weights, and adds `phases` and `begin`. `frozen` are networks that its discriminators look
    through, by name. Where its generator takes more than noise and sentences it has a `synthesize`
    of its own.

    Attributes:
        generator, discriminators, text_encoder, image_encoder: the networks. Encoders that are
            not trained are frozen.
        modules: all of them, with the EMA of the generator where one is kept, by name.
        trainable: those that have an optimizer; of a trained image encoder its heads.
    """

    phases: Sequence[Phase] = ()
    generates_through: Sequence[str] = ()  # frozen networks that `generate` runs too

    def __init__(
        self,
        config: GANConfig,
        generator: nn.Module,
        discriminators: Mapping[str, nn.Module],
        text_encoder: TextEncoder,
        image_encoder: ImageEncoder | None = None,
        *,
        frozen: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.config = config
        self.noise_width, self.resolution = config.noise_width, config.resolution
        self.generator = generator
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self._last_discriminator: Any = [*discriminators.values()][-1]
        trainable = {"generator": generator, **discriminators}
        self.emas: Sequence[EMA] = [_new_ema(generator, config)] if config.ema_images else []
        networks = {**trainable, "text_encoder": text_encoder}
        networks |= {"image_encoder": image_encoder} if image_encoder is not None else {}
        networks |= {"generator_ema": self.emas[0].target} if self.emas else {}
        networks |= {name: n.requires_grad_(False) for name, n in (frozen or {}).items()}
        self.modules = nn.ModuleDict(networks)
        self.trains_encoders = (
            config.text_encoder.training != "frozen" and image_encoder is not None
        )
        if image_encoder is not None and self.trains_encoders:
            trainable |= {"text_encoder": text_encoder, "image_heads": image_encoder.heads}
        else:
            for encoder in (text_encoder, image_encoder):
                if encoder is not None:
                    encoder.requires_grad_(False)
        self.trainable: Mapping[str, nn.Module] = trainable
        self.optimizers: Mapping[str, OptimizerSettings] = self._optimizers(config.text_encoder)

    def _optimizers(self, text: TextEncoderConfig) -> dict[str, OptimizerSettings]:
        config = self.config.optimizer
        betas = (config.beta1, config.beta2)
        rates = dict.fromkeys(self.trainable, config.scale * config.discriminator_learning_rate)
        rates |= {"generator": config.scale * config.generator_learning_rate}
        settings = {name: OptimizerSettings(rate, betas) for name, rate in rates.items()}
        if self.trains_encoders:
            heads = OptimizerSettings(text.learning_rate, betas)
            settings |= {"text_encoder": replace(heads, clip=text.clip), "image_heads": heads}
        return settings

    def set_modes(self) -> None:
        """Put the networks that a step updates into training mode, all others into evaluation."""
        for name, network in self.modules.items():
            encoder = name in {"text_encoder", "image_encoder"}
            trains = name in self.trainable or (encoder and self.trains_encoders)
            if network.training != trains:  # a walk over hundreds of modules
                network.train(trains)

    @torch.no_grad()
    def generate(self, tokens: Tensor, lengths: Tensor, noise: Tensor) -> GeneratedImages:
        """Generate images in evaluation mode, by the EMA's weights where one is kept.

        Args:
            tokens, lengths: captions, int64 (B, T) and (B,).
            noise: (B, noise_width).
        """
        self.modules.eval()
        generator = self.emas[0].target if self.emas else self.generator
        return self.synthesize(generator, self.text_encoder(tokens, lengths), lengths, noise)

    @property
    def has_pair_logits(self) -> bool:
        """Whether the last discriminator is one that :meth:`pair_logits` knows to ask."""
        return all(hasattr(self._last_discriminator, name) for name in ("features", "logits"))

    @torch.no_grad()
    def pair_logits(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits (B, …) of the last discriminator in evaluation mode; high = real.

        Args:
            images: uint8 (B, 3, R, R).
            tokens, lengths: their captions, int64 (B, T) and (B,).
        """
        self.modules.eval()
        sentence = self.text_encoder(tokens, lengths).sentence
        features = self.discriminator_features(images / 127.5 - 1)
        logits: Tensor = self._last_discriminator.logits(features, sentence)
        return logits

    def discriminator_features(self, images: Tensor) -> Any:
        """Return the last discriminator's features of images (B, 3, R, R) in [-1, 1]."""
        return self._last_discriminator.features(images)

    def synthesize(
        self, generator: nn.Module, text: TextFeatures, lengths: Tensor, noise: Tensor
    ) -> GeneratedImages:
        """Run the generator, or its EMA, on encoded captions and noise (B, noise_width)."""
        images: GeneratedImages = generator(noise, text.sentence)
        return images


def _new_ema(generator: nn.Module, config: GANConfig) -> EMA:
    target = copy.deepcopy(generator).requires_grad_(False)
    return EMA(generator, target, config.ema_images, config.ema_ramp)


def generating_networks(system: System) -> set[str]:
    """Return the names of the networks that `generate` runs; not of a GAN: all."""
    if not isinstance(system, GAN):
        return set(system.modules)
    generator = "generator_ema" if system.emas else "generator"
    return {generator, "text_encoder", *system.generates_through}


def refuse_settings(given: Mapping[str, bool], why: str) -> None:
    """Refuse settings that would have no effect.

    Args:
        given: whether a setting is given, by its key below ``system.``.
        why: what is wrong with it and what to do, as the rest of a sentence.

    Raises:
        ConfigurationError: one is given.
    """
    for key, is_given in given.items():
        if is_given:
            raise ConfigurationError(f"system.{key} {why}")


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return names and parameters that an optimizer updates, in the module's order."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]
