"""A run's networks at one of its checkpoints, ready to generate.

``t2i_hpc.load_run`` makes one. Nothing here is global: two runs, devices or precisions live side
by side, and each image is a function of what its call is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.seeds import noise as draw_noise
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.split import Split
from t2i_hpc.models import GeneratedImages
from t2i_hpc.runs.inputs import open_run_split
from t2i_hpc.sampling.arithmetic import generating
from t2i_hpc.sampling.chosen_weights import ChosenWeights
from t2i_hpc.sampling.request import ReadRow, Row, encode_captions, read_rows
from t2i_hpc.sampling.rules import PLAIN, GenerationRules, caption_of, to_uint8
from t2i_hpc.systems.base import TextToImageSystem
from t2i_hpc.systems.encoders import check_caption_length

COLUMN_NOISE = "noise"  # what the noise of image j of every caption is drawn for
_AT_ONCE = 16


@dataclass(frozen=True)
class CaptionImages:
    """Images of captions: N of them, all images of the first caption before those of the second.

    Attributes:
        images: uint8 (N, 3, R, R), on the CPU.
        masks: SSA-GAN's semantic masks, float32 (N, 1, h, w) in [0, 1], first block first; empty
            for systems without.
        attention: AttnGAN's and DM-GAN's word attention, float32 (N, T, h, w), one a stage after
            the first; at each place it sums to 1 over the words. Empty for systems without.
        stages: the images of all stages, float32 (N, 3, h, w) in [-1, 1]; the last became
            `images`.
        rows: of each image the caption, the words that were read and those that are unknown.
        noise: float32 (N, Z) that the images were made of.
    """

    images: Tensor
    masks: list[Tensor]
    attention: list[Tensor]
    stages: list[Tensor]
    rows: list[ReadRow]
    noise: Tensor

    @property
    def captions(self) -> list[str]:
        """The caption of each image."""
        return [row.caption for row in self.rows]

    @property
    def words(self) -> list[list[str]]:
        """The words that were read of each image's caption, in the order of `attention`."""
        return [row.words for row in self.rows]

    def pictures(self) -> list[Image.Image]:
        """Return the images as Pillow's, RGB."""
        pixels = self.images.permute(0, 2, 3, 1).contiguous().numpy()
        return [Image.fromarray(each) for each in pixels]


@dataclass(frozen=True)
class TrainedRun:
    """Generates images with a checkpoint of a run.

    Attributes:
        run: the run directory, or an exported folder.
        config: what it was trained with, with the files that the run keeps.
        weights: which weights are loaded.
        system: the networks, on `device`, in evaluation mode while generating.
        vocabulary: of the run's captions.
        device: of the networks.
        data: folder of the run's data, if it was named.
        precision: a key of :data:`t2i_hpc.sampling.arithmetic.PRECISIONS`.
    """

    run: Path
    config: TrainConfig
    weights: ChosenWeights
    system: TextToImageSystem
    vocabulary: Vocabulary
    device: torch.device
    data: str = ""
    precision: str = "float32"

    @property
    def images_seen(self) -> int:
        """Images the checkpoint was trained on."""
        return self.weights.images_seen

    @property
    def checkpoint_sha256(self) -> str:
        """Identity of the weights."""
        return self.weights.sha256

    @property
    def resolution(self) -> int:
        """Side of the images in px."""
        return self.system.resolution

    def use_latest_weights(self) -> None:
        """Generate with the trained weights from now on, not with their EMA.

        Raises:
            RunError: the weights hold the EMA alone.
        """
        there = set(map(id, self.system.modules.values()))
        if any(id(ema.source) not in there for ema in self.system.emas):
            raise RunError(f"{self.weights.path} holds the EMA of the generator alone: leave "
                           "evaluation.weights=latest out")  # fmt: skip
        for ema in self.system.emas:
            ema.target.load_state_dict(ema.source.state_dict())

    def generate(
        self,
        captions: str | Sequence[str],
        *,
        seed: int = 1,
        images_per_caption: int = 1,
        noise: Tensor | None = None,
    ) -> CaptionImages:
        """Generate images of captions.

        Image j of every caption has the same noise, a function of (seed, j), as a column of the
        grids of ``t2i_hpc.generate`` has: an image depends on seed, caption and j alone, and
        captions differ in what their words change.

        Args:
            captions: one or more; words that the vocabulary does not have are left out.
            seed: of the noise, and of the words that are read of captions that are too long.
            images_per_caption: how many of each.
            noise: float (N, Z), one row an image, in place of the seed's.

        Raises:
            ConfigurationError: a caption of which no word is known, no caption at all, or noise
                of another shape.
        """
        texts = [captions] if isinstance(captions, str) else list(captions)
        if not texts or images_per_caption < 1:
            raise ConfigurationError(
                "there is nothing to generate: give one caption or more, and images_per_caption "
                "of at least 1"
            )
        rows = read_rows(
            [Row(text, text) for text in texts], self.vocabulary, self.config.data.max_tokens, seed
        )
        listed = [row for row in rows for _ in range(images_per_caption)]
        latent = self._noise(seed, images_per_caption, len(listed), noise)
        tokens, lengths = self.tokenize([row.caption for row in listed], seed, PLAIN)
        made = self.in_batches(tokens, lengths, latent)
        return CaptionImages(
            to_uint8(made.images[-1]),
            list(made.masks),
            list(made.attention),
            list(made.images),
            listed,
            latent,
        )

    def _noise(self, seed: int, columns: int, count: int, given: Tensor | None) -> Tensor:
        width = self.system.noise_width
        if given is None:
            return draw_noise(seed, COLUMN_NOISE, range(columns), width).repeat(count // columns, 1)
        if given.shape != (count, width):
            raise ConfigurationError(
                f"noise of shape {tuple(given.shape)} does not fit: {count} images need "
                f"({count}, {width})"
            )
        return given.detach().float().cpu()

    def in_batches(self, tokens: Tensor, lengths: Tensor, latent: Tensor) -> GeneratedImages:
        """Generate any number of images, a few at a time; float32 on the CPU.

        Args:
            tokens, lengths: int64 (B, T) and (B,).
            latent: float32 (B, Z).
        """
        with generating(self.precision, self.device):
            return generate_in_batches(self.system, tokens, lengths, latent)

    def generate_batch(self, captions: Sequence[str], latent: Tensor, seed: int) -> Tensor:
        """Generate one batch: uint8 (B, 3, R, R) on the device.

        Args:
            captions: B texts; one without a known word is read as nothing.
            latent: float32 (B, Z).
            seed: of the words that are read of captions that are too long.
        """
        tokens, lengths = self.tokenize(captions, seed, PLAIN)
        with generating(self.precision, self.device):
            made = self.system.generate(tokens, lengths, latent.to(self.device))
        return PLAIN.levels(made.images[-1])

    def generate_numbers(
        self, numbers: range, seed: int, split: str, rules: GenerationRules = PLAIN
    ) -> Tensor:
        """Generate images number `numbers` of an evaluation: uint8 (B, 3, R, R) on the device.

        Noise and caption of image i are functions of (seed, i) alone.
        """
        opened = self.split(split)
        captions = [caption_of(opened, number, seed, rules) for number in numbers]
        latent = rules.noise(numbers, self.system.noise_width, seed)
        tokens, lengths = self.tokenize(captions, seed, rules)
        with generating(self.precision, self.device):
            made = self.system.generate(tokens, lengths, latent.to(self.device))
        return rules.levels(made.images[-1])

    def tokenize(
        self, captions: Sequence[str], seed: int, rules: GenerationRules
    ) -> tuple[Tensor, Tensor]:
        """Return tokens int64 (B, T) and lengths (B,) of captions, on the device."""
        longest = rules.caption_tokens or self.config.data.max_tokens
        key = "evaluation.caption_tokens" if rules.caption_tokens else "data.max_tokens"
        check_caption_length(dict(self.system.modules.items()), longest, key)
        tokens, lengths = encode_captions(captions, self.vocabulary, longest, seed)
        return tokens.to(self.device), lengths.to(self.device)

    @property
    def held_out(self) -> Split:
        """The test split of the run's data."""
        return self.split(self.config.data.test_split)

    @cached_property
    def _opened(self) -> dict[str, Split]:
        return {}

    def split(self, name: str) -> Split:
        """Return a split of the run's data, opened once."""
        if name not in self._opened:
            self._opened[name] = self.open_split(name)
        return self._opened[name]

    def open_split(self, name: str) -> Split:
        """Open a split of the run's data anew, e.g. for another thread.

        Raises:
            DataError: it is not there, or damaged.
        """
        return open_run_split(
            self.run, self.config.data, name, named=self.data, vocabulary=self.vocabulary
        )


def generate_in_batches(
    system: TextToImageSystem, tokens: torch.Tensor, lengths: torch.Tensor, latent: torch.Tensor
) -> GeneratedImages:
    """Generate any number of images, a few at a time to bound memory; results on the CPU."""
    device = next(system.modules.parameters()).device
    batches: list[GeneratedImages] = []
    for start in range(0, len(tokens), _AT_ONCE):
        rows = [value[start : start + _AT_ONCE].to(device) for value in (tokens, lengths, latent)]
        batches.append(system.generate(*rows))
    return joined(batches)


def first_of(pictures: GeneratedImages) -> GeneratedImages:
    """Return the first of some images alone."""
    return GeneratedImages(
        images=[image[:1] for image in pictures.images],
        masks=[mask[:1] for mask in pictures.masks],
        attention=[maps[:1] for maps in pictures.attention],
    )


def joined(batches: Sequence[GeneratedImages]) -> GeneratedImages:
    """Return batches of images one after the other, on the CPU."""
    return GeneratedImages(
        images=_joined([batch.images for batch in batches]),
        masks=_joined([batch.masks for batch in batches]),
        attention=_joined([batch.attention for batch in batches]),
    )


def _joined(batches: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    # float32 on the CPU, whatever precision they were generated in.
    return [torch.cat(pieces).float().cpu() for pieces in zip(*batches, strict=True)]
