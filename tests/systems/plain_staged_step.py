"""The step of AttnGAN and DM-GAN written plainly, to compare the project's step with.

The order of operations of the released code: cross-entropies of probabilities, the wrong pairs
cut out of the batch, discriminators whose gradients are computed in the generator's step and
thrown away. Works on the parameters of a system's modules; one process, no DAMSM.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from t2i_hpc.models.staged_discriminator import StagedDiscriminator
from t2i_hpc.systems.staged_gan import StagedGAN


class PlainStagedStep:
    """Whole training steps of `system`, with optimizers of its own."""

    def __init__(self, system: StagedGAN) -> None:
        self.system = system
        self.adams = {
            name: Adam(part.parameters(), 2e-4, (0.5, 0.999))
            for name, part in system.trainable.items()
        }

    def run(
        self, real: Tensor, tokens: Tensor, lengths: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Run one step with images (B, 3, R, R); return the loss of each phase."""
        system = self.system
        for part in system.trainable.values():
            part.train()
        system.text_encoder.eval()
        with torch.no_grad():
            text = system.text_encoder(tokens, lengths)
        hidden = torch.tensor([[t >= n for t in range(tokens.shape[1])] for n in lengths.tolist()])
        latent, chance = (
            noise[:, : system.config.noise_width],
            noise[:, system.config.noise_width :],
        )
        generated = system.generator(latent, text.sentence, text.words, hidden, chance)
        values: dict[str, Tensor] = {}
        for (side, network), fake in zip(
            system.discriminators.items(), generated.images, strict=True
        ):
            name = f"discriminator{side}"
            small = F.interpolate(real, (side, side), mode="bilinear", antialias=True)
            values[name] = discriminator_loss(network, small, fake.detach(), text.sentence)
            self.update(name, values[name])
        loss = torch.zeros((), dtype=real.dtype)
        for network, fake in zip(system.discriminators.values(), generated.images, strict=True):
            features = network.features(fake)
            loss = loss + entropy(network.logits(features, text.sentence), 1.0)
            alone = network.unconditional_logits(features)
            loss = loss if alone is None else loss + entropy(alone, 1.0)
        mean, log_variance = generated.condition.mean, generated.condition.log_variance
        divergence = 1 + log_variance - mean.pow(2) - log_variance.exp()
        values["generator"] = loss - 0.5 * divergence.mean()
        self.update("generator", values["generator"])
        return {name: value.detach() for name, value in values.items()}

    def update(self, name: str, loss: Tensor) -> None:
        self.adams[name].zero_grad()
        loss.backward()
        self.adams[name].step()


def discriminator_loss(
    network: StagedDiscriminator, real: Tensor, fake: Tensor, sentence: Tensor
) -> Tensor:
    """Pairs, wrong pairs (image i with sentence i + 1) and, where there is a head, images alone."""
    of_real, of_fake = network.features(real), network.features(fake)
    matching = entropy(network.logits(of_real, sentence), 1.0)
    generated = entropy(network.logits(of_fake, sentence), 0.0)
    wrong = entropy(network.logits(of_real[:-1], sentence[1:]), 0.0)
    alone = network.unconditional_logits(of_real), network.unconditional_logits(of_fake)
    if alone[0] is None or alone[1] is None:
        return matching + (generated + wrong) / 2
    real_alone, fake_alone = entropy(alone[0], 1.0), entropy(alone[1], 0.0)
    return (real_alone + matching) / 2 + (fake_alone + generated + wrong) / 3


def entropy(logits: Tensor, label: float) -> Tensor:
    """Binary cross-entropy of probabilities, a mean over the batch."""
    return F.binary_cross_entropy(logits.sigmoid(), torch.full_like(logits, label))
