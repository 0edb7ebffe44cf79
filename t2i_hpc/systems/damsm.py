"""Pre-training of the text and image encoders by DAMSM (AttnGAN §3.2).

One phase: the four contrastive losses of real images and their captions. What is trained are
the text encoder and the two projections of the image encoder; its trunk keeps its ImageNet
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from t2i_hpc.common.step import Batch, Losses, OptimiserSettings, Phase
from t2i_hpc.config.system import DAMSMPretrainingConfig
from t2i_hpc.losses.damsm import sentence_scores
from t2i_hpc.systems.encoders import (
    as_terms,
    build_images_encoder,
    build_text_encoder,
    damsm_terms,
    scale_images,
)


class DAMSMPretraining:
    """The system ``damsm``."""

    noise_width = 0

    def __init__(self, config: DAMSMPretrainingConfig, vocabulary_size: int) -> None:
        self.config = config
        self.resolution = config.resolution
        self.text_encoder = build_text_encoder(config.text_encoder, vocabulary_size)
        self.image_encoder = build_images_encoder(config.image_encoder, config.text_encoder.width)
        self.modules = nn.ModuleDict(
            {"text_encoder": self.text_encoder, "image_encoder": self.image_encoder}
        )
        encoders = {"text": self.text_encoder, "image_heads": self.image_encoder.heads}
        self.parts: Mapping[str, nn.Module] = {"encoders": nn.ModuleDict(encoders)}
        adam = OptimiserSettings(config.learning_rate, (config.beta1, config.beta2))
        self.optimisers: Mapping[str, OptimiserSettings] = {"encoders": adam}
        self.phases: Sequence[Phase] = [Phase("encoders", ("encoders",), self.losses)]

    def begin(self, batch: Batch, noise: Tensor) -> Batch:
        """Make ready for training; a batch is all that the phase needs."""
        self.modules.train()
        return batch

    def losses(self, batch: Batch) -> Losses:
        """DAMSM's four losses of real pairs."""
        text = self.text_encoder(batch.tokens, batch.lengths)
        images = scale_images(batch.images)
        terms = damsm_terms(images, self.image_encoder, text, batch, self.config.damsm)
        return as_terms(terms, "", 1.0)

    @torch.no_grad()
    def match(self, batch: Batch) -> Tensor:
        """Return cosines (B, B) of image codes and sentences, in evaluation mode."""
        self.modules.eval()
        sentence = self.text_encoder(batch.tokens, batch.lengths).sentence
        return sentence_scores(self.image_encoder(scale_images(batch.images)).code, sentence)
