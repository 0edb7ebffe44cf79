"""A run's networks at one of its checkpoints, ready to generate.

The weights are a checkpoint's, or those of a file that was exported from one. Whatever image i of
an evaluation is made of (caption, noise) comes from (seed, i) alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.common.seeds import generator, noise
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.captions import VOCABULARY_NOTE, Vocabulary, check_same_words
from t2i_hpc.data.split import Split
from t2i_hpc.models import GeneratedImages
from t2i_hpc.runs.checkpoint import Checkpoint, choose_checkpoint, load_weights, read_state
from t2i_hpc.runs.inputs import open_run_split, run_vocabulary, with_inputs
from t2i_hpc.runs.run_directory import open_run
from t2i_hpc.sampling.request import encode_captions
from t2i_hpc.systems import build_system
from t2i_hpc.systems.base import TextToImageSystem, generating_networks
from t2i_hpc.systems.encoders import checkpoint_follows

_CAPTION_TEXTS = {
    "one": "sample i modulo their number, one of its captions by (seed, i)",
    "all": "sample i modulo their number, each of its captions in turn",
}
_ROUNDING_TEXTS = {
    "nearest": "clamped to [-1, 1], to the nearest of 256 levels, no compression",
    "down": "clamped to [-1, 1], to the next lower of 256 levels, no compression",
}
SUFFIX = ".safetensors"
_AT_ONCE = 16


@dataclass(frozen=True)
class GenerationRules:
    """How the images of an evaluation are generated.

    Attributes:
        captions: one (by the seed) or all (each in turn).
        truncation: largest noise in standard deviations, None for any.
        rounding: nearest or down.
        caption_tokens: most tokens of a caption; None: as many as in training.
    """

    captions: str = "one"
    truncation: float | None = None
    rounding: str = "nearest"
    caption_tokens: int | None = None

    def text(self) -> dict[str, str]:
        """Return the choices as a protocol states them."""
        bound = self.truncation
        kept = "plain" if bound is None else f"normal cut off at {bound:g} standard deviations"
        return {
            "caption_choice": _CAPTION_TEXTS[self.captions],
            "truncation": kept,
            "rounding": _ROUNDING_TEXTS[self.rounding],
            "caption_tokens": str(self.caption_tokens or "as many as in training"),
        }

    def caption_of(self, number: int, samples: int, captions: int, seed: int) -> int:
        """Return which of its sample's `captions` captions image `number` is made of."""
        if self.captions == "all":
            return number // samples % captions
        rng = generator(seed, "caption of a generated image", number)
        return int(rng.integers(captions))

    def noise(self, numbers: Iterable[int], width: int, seed: int) -> Tensor:
        """Return noise, float32 (B, width), on the CPU."""
        plain = noise(seed, "evaluation noise", numbers, width)
        return plain if self.truncation is None else truncate(plain, self.truncation)

    def levels(self, images: Tensor) -> Tensor:
        """Turn [-1, 1] into 0..255, on the images' device."""
        if self.rounding == "nearest":
            values = (images.float() * 127.5 + 127.5).round()
        else:  # in the order of AttnGAN, DM-GAN and SSA-GAN: the last bit decides a level
            values = ((images.float() + 1) * 127.5).floor()
        levels: Tensor = values.clamp(0, 255).to(torch.uint8)
        return levels


PLAIN = GenerationRules()


def truncate(plain: Tensor, bound: float) -> Tensor:
    """Map standard normal noise to the normal distribution truncated at ± `bound`.

    Each value goes to the one with the same rank, so that noise of one seed stays recognizable
    under any bound.
    """
    share = math.erf(bound / math.sqrt(2))
    rank = torch.special.ndtr(plain.double())
    inside = torch.special.ndtri(0.5 + share * (rank - 0.5))
    bounded: Tensor = inside.clamp(-bound, bound).float()
    return bounded


@dataclass(frozen=True)
class ChosenWeights:
    """All networks' weights: a checkpoint's, or a file that was exported from one.

    Attributes:
        path: the file, or that of a checkpoint's trained networks.
        sha256: its identity.
        images_seen: images that it was trained on, 0 where the file does not say.
        vocabulary: SHA-256 of the vocabulary that it was trained with; empty: not recorded.
        frozen: the file of a checkpoint's other networks.
    """

    path: Path
    sha256: str
    images_seen: int
    vocabulary: str = ""
    frozen: Path | None = None

    def networks(self) -> set[str]:
        """Return the names of the networks; their weights are not read.

        Raises:
            RunError: a file cannot be read.
        """
        return {name for path in self._files for name in _networks_in(path)}

    def load(self, modules: nn.Module, needed: AbstractSet[str] | None = None) -> None:
        """Load the networks, all of them or nothing; but for `needed` they may be missing.

        Raises:
            RunError: the networks have other names, shapes or types.
        """
        load_weights(self._files, modules, needed)

    @property
    def _files(self) -> list[Path]:
        return [self.path] if self.frozen is None else [self.path, self.frozen]


def choose_weights(run: Path, which: str) -> ChosenWeights:
    """Return the weights named by ``checkpoint=``: latest, a number of images, or a file.

    Raises:
        RunError: no such checkpoint, it is damaged, or the file holds not all networks.
    """
    if which.endswith(SUFFIX):
        return _of_file(Path(which))
    return _of_checkpoint(choose_checkpoint(run, which))


def recorded_weights(run: Path, images: int) -> ChosenWeights:
    """Return a checkpoint by what its record says, without reading its tensors."""
    return _of_checkpoint(read_state(run, images))


def _of_checkpoint(checkpoint: Checkpoint) -> ChosenWeights:
    seen, words = checkpoint.progress.images_seen, checkpoint.vocabulary
    return ChosenWeights(checkpoint.weights, checkpoint.sha256, seen, words, checkpoint.frozen)


def _networks_in(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as opened:
            return {name.split(".")[0] for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _of_file(path: Path) -> ChosenWeights:
    try:
        with safe_open(path, framework="pt") as opened:
            notes = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise RunError(f"checkpoint={path} cannot be read: {error}") from error
    if notes.get("what", "all") != "all":
        raise RunError(
            f"checkpoint={path} holds the network {notes['what']} alone: export all of them "
            "with t2i_hpc.checkpoints export what=all"
        )
    seen = notes.get("images", "0")
    images = int(seen) if seen.isdecimal() else 0
    return ChosenWeights(path, sha256_of_file(path), images, notes.get(VOCABULARY_NOTE, ""))


@dataclass(frozen=True)
class TrainedRun:
    """Generates images with a checkpoint of a run.

    Attributes:
        run: the run directory.
        config: what it was trained with, with the files that the run keeps.
        weights: which weights are loaded.
        system: the networks, on `device`, in evaluation mode while generating.
        vocabulary: of the run's captions.
        device: of the networks.
        data: folder of the run's data, if it was named.
    """

    run: Path
    config: TrainConfig
    weights: ChosenWeights
    system: TextToImageSystem
    vocabulary: Vocabulary
    device: torch.device
    data: str = ""

    @classmethod
    def open(cls, run: Path, checkpoint: str, device: torch.device, data: str = "") -> TrainedRun:
        """Load a run's networks.

        Args:
            run: run directory.
            checkpoint: latest, a number of images seen, or an exported file.
            device: of the networks.
            data: folder of the run's data, where it is no longer where it was.

        Raises:
            RunError: no run, no such checkpoint, damaged weights.
            DataError: the vocabulary is neither in the run nor with its data.
        """
        config = with_inputs(run, open_run(run))
        chosen = choose_weights(run, checkpoint)
        vocabulary = run_vocabulary(run, config.data, data)
        check_same_words(
            f"{chosen.path} of the run {run}",
            chosen.vocabulary,
            vocabulary.sha256,
            "put the vocabulary.json back that the run was trained with",
        )
        with checkpoint_follows():
            system = build_system(config.system, vocabulary.size)
        if not isinstance(system, TextToImageSystem):
            raise RunError(f"{run} is a run of {config.system.name}, which generates no images")
        chosen.load(system.modules, generating_networks(system))
        system.modules.to(device)
        return cls(run, config, chosen, system, vocabulary, device, data)

    @property
    def images_seen(self) -> int:
        """Images the checkpoint was trained on."""
        return self.weights.images_seen

    @property
    def checkpoint_sha256(self) -> str:
        """Identity of the weights."""
        return self.weights.sha256

    def use_latest_weights(self) -> None:
        """Generate with the trained weights from now on, not with their EMA."""
        for ema in self.system.emas:
            ema.target.load_state_dict(ema.source.state_dict())

    def generate(
        self, numbers: range, seed: int, split: str, rules: GenerationRules = PLAIN
    ) -> Tensor:
        """Generate images number `numbers` of an evaluation: uint8 (B, 3, R, R) on the device.

        Noise and caption of image i are functions of (seed, i) alone.
        """
        opened = self.split(split)
        captions = [caption_of(opened, number, seed, rules) for number in numbers]
        latent = rules.noise(numbers, self.system.noise_width, seed)
        tokens, lengths = self.tokenize(captions, seed, rules)
        generated = self.system.generate(tokens, lengths, latent.to(self.device))
        return rules.levels(generated.images[-1])

    def tokenize(
        self, captions: Sequence[str], seed: int, rules: GenerationRules
    ) -> tuple[Tensor, Tensor]:
        """Return tokens int64 (B, T) and lengths (B,) of captions, on the device."""
        longest = rules.caption_tokens or self.config.data.max_tokens
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


def caption_of(split: Split, number: int, seed: int, rules: GenerationRules) -> str:
    """Return the caption that image `number` of an evaluation is made of."""
    captions = split.sample(number % split.count).captions
    return captions[rules.caption_of(number, split.count, len(captions), seed)]


def to_uint8(images: Tensor) -> Tensor:
    """Turn [-1, 1] into 0..255, clamped and rounded to the nearest; on the CPU."""
    return PLAIN.levels(images).cpu()


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
    return [torch.cat(pieces).cpu() for pieces in zip(*batches, strict=True)]
