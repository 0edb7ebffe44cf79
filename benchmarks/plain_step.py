"""SSA-GAN's training step written plainly, to compare the project's step with.

The order of operations of the released code, with nothing left out and nothing moved: torch's
own leaky_relu and avg_pool2d, 1×1 shortcuts at the large resolution, one forward of the
discriminator for real and one for fake images, the penalty's root and then its power, a loop
over captions, and a discriminator whose gradients are computed in the generator's step and
thrown away. Works on the parameters of a system's modules; one process, two steps of the
discriminator, released modulation and masks.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from t2i_hpc.config.encoder_settings import DAMSMConfig
from t2i_hpc.config.one_stage_settings import SSAGANConfig
from t2i_hpc.models.discriminator import DownBlock, MatchingDiscriminator
from t2i_hpc.models.image_encoder import ImageEncoder
from t2i_hpc.models.ssa_generator import (
    AffineParameter,
    MaskPredictor,
    SemanticSpatialBatchNorm,
    SSABlock,
    SSAGenerator,
)
from t2i_hpc.models.text_encoder import TextFeatures
from t2i_hpc.systems.base import OptimizerSettings
from t2i_hpc.systems.one_stage_gan import OneStageGAN


class PlainStep:
    """Whole training steps of `system`, with optimizers of its own."""

    def __init__(self, system: OneStageGAN) -> None:
        self.system = system
        self.trained = system.config.text_encoder.training == "damsm"
        self.generator_adam = adam([system.generator], system.optimizers["generator"])
        self.discriminator_adam = adam([system.discriminator], system.optimizers["discriminator"])
        if self.trained:
            encoders: list[nn.Module] = [system.text_encoder]
            if system.image_encoder is not None:
                encoders.append(system.image_encoder.heads)
            self.encoder_adam = adam(encoders, system.optimizers["text_encoder"])

    def run(
        self, real: Tensor, tokens: Tensor, lengths: Tensor, classes: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Run one step; return its losses under the engine's names.

        Args:
            real: images (B, 3, R, R) in [-1, 1].
            tokens, lengths, classes: as in a batch.
            noise: (B, Z).
        """
        self.system.modules.train()
        self.system.text_encoder.train(self.trained)
        text = self.system.text_encoder(tokens, lengths)
        words, sentence = text.words.detach(), text.sentence.detach()
        fixed = TextFeatures(words, sentence)
        values: dict[str, Tensor] = {}

        fake = plain_generator(cast(SSAGenerator, self.system.generator), noise, sentence)
        if self.trained:
            named = self.damsm(real, text, lengths, classes)
            update(self.encoder_adam, torch.stack(list(named.values())).sum())
            values |= {f"encoders/real_{name}": value for name, value in named.items()}

        hinge = self.hinge(real, fake.detach(), sentence)
        real_loss, mismatch, fake_loss = hinge.values()
        update(self.discriminator_adam, real_loss + (fake_loss + mismatch) / 2)
        penalty = self.penalty(real, sentence)
        update(self.discriminator_adam, self.system.config.penalty_weight * penalty)
        values |= hinge | {"penalty/gradient": penalty}

        adversarial = -plain_logits(self.system.discriminator, fake, sentence).mean()
        loss, values["generator/adversarial"] = adversarial, adversarial
        weight = cast(SSAGANConfig, self.system.config).damsm.weight
        if weight > 0:
            named = self.damsm(fake, fixed, lengths, classes)
            loss = loss + weight * torch.stack(list(named.values())).sum()
            values |= {f"generator/damsm_{name}": value for name, value in named.items()}
        update(self.generator_adam, loss)
        return {name: value.detach() for name, value in values.items()}

    def hinge(self, real: Tensor, fake: Tensor, sentence: Tensor) -> dict[str, Tensor]:
        """Hinge losses of real, mismatched (image i with caption i + 1) and fake pairs."""
        network = self.system.discriminator
        features = plain_features(network, real)
        matching = plain_judge(network, features, sentence)
        wrong = plain_judge(network, features[:-1], sentence[1:])
        drawn = plain_logits(network, fake, sentence)
        return {
            "discriminator/real": F.relu(1.0 - matching).mean(),
            "discriminator/mismatch": F.relu(1.0 + wrong).mean(),
            "discriminator/fake": F.relu(1.0 + drawn).mean(),
        }

    def penalty(self, real: Tensor, sentence: Tensor) -> Tensor:
        """Mean sixth power of the norm of both gradients joined."""
        # Views, since the FLOP counter's hooks refuse to see leaves differentiated.
        leaves = [value.clone().requires_grad_() for value in (real, sentence)]
        image, condition = (leaf.view_as(leaf) for leaf in leaves)
        logits = plain_logits(self.system.discriminator, image, condition)
        gradients = torch.autograd.grad(logits.sum(), [image, condition], create_graph=True)
        joined = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
        norm = joined.square().sum(1).sqrt()
        penalty: Tensor = norm.pow(self.system.config.penalty_power).mean()
        return penalty

    def damsm(
        self, images: Tensor, text: TextFeatures, lengths: Tensor, classes: Tensor
    ) -> dict[str, Tensor]:
        """DAMSM's four losses."""
        features = cast(ImageEncoder, self.system.image_encoder)(images)
        config = cast(SSAGANConfig, self.system.config).damsm
        by_words = plain_word_scores(features.regions, text.words, lengths, config)
        codes, sentences = features.code[:, None], text.sentence[None]
        by_sentence = config.gamma3 * F.cosine_similarity(codes, sentences, dim=2)
        rows, columns = plain_contrastive(by_words, classes)
        code_rows, code_columns = plain_contrastive(by_sentence, classes)
        return {
            "image_to_words": rows,
            "words_to_image": columns,
            "image_to_sentence": code_rows,
            "sentence_to_image": code_columns,
        }


def adam(modules: list[nn.Module], settings: OptimizerSettings) -> Adam:
    """Adam over all parameters of some modules."""
    parameters = [p for module in modules for p in module.parameters()]
    return Adam(parameters, settings.learning_rate, settings.betas, settings.epsilon)


def update(optimizer: Adam, loss: Tensor) -> None:
    """One step; gradients that exist become zeros first, so that Adam sees every parameter."""
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()


def plain_features(network: MatchingDiscriminator, image: Tensor) -> Tensor:
    """Discriminator's features, shortcuts before the pooling."""
    features: Tensor = network.from_rgb(image)
    for block in cast(list[DownBlock], list(network.blocks)):
        residual = F.leaky_relu(block.conv1(features), 0.2)
        residual = F.leaky_relu(block.conv2(residual), 0.2)
        features = F.avg_pool2d(block.shortcut(features), 2) + block.scale * residual
    return features


def plain_judge(network: MatchingDiscriminator, features: Tensor, sentence: Tensor) -> Tensor:
    """Logits of features with sentences."""
    spread = sentence[:, :, None, None].repeat(1, 1, *features.shape[2:])
    hidden = F.leaky_relu(network.joint(torch.cat([features, spread], dim=1)), 0.2)
    logits: Tensor = network.logit(hidden).flatten()
    return logits


def plain_logits(network: MatchingDiscriminator, image: Tensor, sentence: Tensor) -> Tensor:
    """Logits of images with sentences."""
    return plain_judge(network, plain_features(network, image), sentence)


def plain_generator(network: SSAGenerator, noise: Tensor, sentence: Tensor) -> Tensor:
    """Images, with blocks that enlarge first and masks from the features before that."""
    features: Tensor = network.stem(noise).view(len(noise), -1, 4, 4)
    for index, block in enumerate(cast(list[SSABlock], list(network.blocks))):
        logits = plain_mask(cast(MaskPredictor, network.mask_predictors[str(index)]), features)
        if index > 0:
            features = F.interpolate(features, scale_factor=2, mode="nearest")
            logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True)
        mask = logits.sigmoid()
        hidden = block.conv1(F.relu(plain_modulation(block.norm1, features, sentence, mask)))
        hidden = block.conv2(F.relu(plain_modulation(block.norm2, hidden, sentence, mask)))
        features = block.shortcut(features) + block.scale * hidden
    return torch.tanh(network.to_rgb(F.leaky_relu(plain_norm(network.norm, features), 0.2)))


def plain_mask(predictor: MaskPredictor, features: Tensor) -> Tensor:
    """Logits of a mask."""
    hidden = F.relu(plain_norm(predictor.norm, predictor.features(features)))
    logits: Tensor = predictor.logits(hidden)
    return logits


def plain_modulation(
    norm: SemanticSpatialBatchNorm, features: Tensor, sentence: Tensor, mask: Tensor
) -> Tensor:
    """x̂·(1 + m·γ) + m·β, with γ and β as full maps."""
    gamma, beta = (plain_affine(affine, sentence) for affine in (norm.gamma, norm.beta))
    size = features.shape
    weight = gamma[:, :, None, None].expand(size) * mask + 1
    bias = beta[:, :, None, None].expand(size) * mask
    return plain_norm(norm.norm, features) * weight + bias


def plain_affine(affine: AffineParameter, sentence: Tensor) -> Tensor:
    """One number a channel (B, C)."""
    numbers: Tensor = affine.output(F.relu(affine.hidden(sentence)))
    return numbers


def plain_norm(norm: nn.BatchNorm2d, features: Tensor) -> Tensor:
    """torch's batch norm with the statistics of the batch."""
    return F.batch_norm(
        features, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True
    )


def plain_word_scores(
    regions: Tensor, words: Tensor, lengths: Tensor, config: DAMSMConfig
) -> Tensor:
    """Scaled scores (images, captions), one caption at a time."""
    flat = regions.flatten(2)
    columns = []
    for caption, length in zip(words, lengths.tolist(), strict=True):
        own = caption[:, :length]
        competing = (flat.transpose(1, 2) @ own).softmax(2)
        context = flat @ (config.gamma1 * competing).softmax(1)
        cosine = F.cosine_similarity(context, own[None], dim=1)
        columns.append((config.gamma2 * cosine).exp().sum(1).log())
    return config.gamma3 * torch.stack(columns, dim=1)


def plain_contrastive(scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies of rows and columns, other pairs of a class left out."""
    count = len(scores)
    same = torch.tensor(
        [[i != j and classes[i] == classes[j] for j in range(count)] for i in range(count)]
    ).to(scores.device)
    target = torch.arange(count, device=scores.device)
    masked = scores.masked_fill(same, float("-inf"))
    return F.cross_entropy(masked, target), F.cross_entropy(masked.t(), target)
