"""Pre-training of the text and image encoders by DAMSM (AttnGAN §3.2).

One phase: the four contrastive losses of real images and their captions. It trains the text
encoder and the two projections of the image encoder, whose trunk keeps its ImageNet weights. Each
has its own optimizer, since only the text encoder's gradient is clipped.

The defaults are AttnGAN's released ``pretrain_DAMSM``: the learning rate falls by 2 % after each
epoch down to a tenth, and Adam's moments are reset with each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.transfer import to_device
from t2i_hpc.config.systems import DAMSMPretrainingConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.losses.damsm import sentence_scores, word_attention
from t2i_hpc.models.text_encoder import TextFeatures
from t2i_hpc.systems.base import (
    EMA,
    Losses,
    OptimizerSettings,
    Phase,
    PreparedLoss,
    refuse_settings,
)
from t2i_hpc.systems.encoders import (
    as_terms,
    build_text_encoder,
    damsm_terms,
    scale_images,
)
from t2i_hpc.systems.inception_weights import build_pretraining_encoder

_BATCH = 32  # images that are encoded together for a score


class DAMSMPretraining:
    """The system ``damsm``."""

    noise_width = 0
    emas: Sequence[EMA] = ()

    def __init__(self, config: DAMSMPretrainingConfig, vocabulary_size: int) -> None:
        refuse_settings(
            {"text_encoder.training": config.text_encoder.training != "frozen"},
            "has no effect on damsm, which trains its text encoder: leave it out",
        )
        self.config = config
        self.resolution = config.resolution
        self.optimizers: Mapping[str, OptimizerSettings] = _optimizers(config)
        self.image_encoder = build_pretraining_encoder(
            config.image_encoder, config.text_encoder.width
        )
        self.text_encoder = build_text_encoder(config.text_encoder, vocabulary_size)
        self.modules = nn.ModuleDict(
            {"text_encoder": self.text_encoder, "image_encoder": self.image_encoder}
        )
        self.trainable: Mapping[str, nn.Module] = {
            "text_encoder": self.text_encoder,
            "image_heads": self.image_encoder.heads,
        }
        loss = PreparedLoss(self.encode, self.losses)
        self.phases: Sequence[Phase] = [Phase("encoders", tuple(self.trainable), loss)]

    def begin(self, batch: Batch, noise: Tensor) -> Batch:
        """Switch to training mode; the phase needs the batch alone."""
        if not self.modules.training:  # a walk over hundreds of modules
            self.modules.train()
        return batch

    def encode(self, batch: Batch) -> tuple[Batch, TextFeatures]:
        """Encode the captions of a batch."""
        return batch, self.text_encoder(batch.tokens, batch.lengths)

    def losses(self, encoded: tuple[Batch, TextFeatures]) -> Losses:
        """DAMSM's four losses of real pairs, their plain sum (no λ)."""
        batch, text = encoded
        images = scale_images(batch.images)
        terms = damsm_terms(images, self.image_encoder, text, batch, self.config.damsm)
        return as_terms(terms, "", 1.0)

    @torch.no_grad()
    def match(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return cosines (N, M) of image codes and sentences, in evaluation mode.

        Args:
            images: uint8 (N, 3, R, R).
            tokens, lengths: int64 (M, T) and (M,).
        """
        self.modules.eval()
        sentence = self.text_encoder(tokens, lengths).sentence
        codes = [self.image_encoder(scale_images(p)).code for p in images.split(_BATCH)]
        return sentence_scores(torch.cat(codes), sentence)

    @torch.no_grad()
    def attend(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return each word's attention over the regions of its image, in evaluation mode.

        Args:
            images: uint8 (B, 3, R, R).
            tokens, lengths: int64 (B, T) and (B,).

        Returns:
            (B, T, r, r): summing to 1 for each word (AttnGAN Eq. 9); 0 behind the end of a caption.
        """
        self.modules.eval()
        words = self.text_encoder(tokens, lengths).words
        regions = self.image_encoder(scale_images(images)).regions
        lengths = to_device(lengths, words.device)
        valid = torch.arange(words.shape[2], device=words.device) < lengths[:, None]
        maps = [
            word_attention(own[None], word[None], there[None], self.config.damsm.gamma1)[0, 0]
            for own, word, there in zip(regions.flatten(2), words, valid, strict=True)
        ]
        shown = torch.stack(maps).transpose(1, 2) * valid[:, :, None]
        return shown.view(*shown.shape[:2], *regions.shape[2:])


def falling(start: float, decay: float, floor: float, epoch: int) -> Callable[[int], float]:
    """Return a learning rate of images seen: × `decay` after an epoch while above the floor.

    AttnGAN's rule: an epoch that begins above ``floor * start`` ends with a multiplication, so
    the last rate is just below the floor.

    Args:
        start: learning rate of the first epoch.
        decay: factor, 0 < decay ≤ 1.
        floor: fraction of `start`.
        epoch: images of an epoch.
    """
    most = math.ceil(math.log(floor) / math.log(decay)) if decay < 1 else 0
    return lambda images_seen: start * decay ** min(images_seen // epoch, most)


def _optimizers(config: DAMSMPretrainingConfig) -> dict[str, OptimizerSettings]:
    if config.epoch_images is None:
        raise ConfigurationError(
            "system.epoch_images is empty: start with t2i_hpc.pretrain, which takes it from the "
            "training split, or give the number of images of an epoch"
        )
    rate, decay = config.learning_rate, config.learning_rate_decay
    heads = OptimizerSettings(
        rate,
        (config.beta1, config.beta2),
        learning_rate_at=falling(rate, decay, config.learning_rate_floor, config.epoch_images),
        restart_every=config.epoch_images if config.restart_moments else None,
    )
    return {
        "text_encoder": replace(heads, clip=config.text_encoder.clip),
        "image_heads": heads,
    }
