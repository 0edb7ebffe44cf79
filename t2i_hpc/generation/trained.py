"""A run's networks at one of its checkpoints, ready to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.run_layout import list_checkpoints
from t2i_hpc.common.step import Painter
from t2i_hpc.common.word_numbers import check_same_words
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.split import Split
from t2i_hpc.engine.inputs import open_run_split, run_vocabulary, with_inputs
from t2i_hpc.engine.run_directory import open_run
from t2i_hpc.generation.captions import encode_captions
from t2i_hpc.generation.rules import PLAIN, DrawingRules
from t2i_hpc.generation.weights import ChosenWeights, choose_weights
from t2i_hpc.systems import build_system
from t2i_hpc.systems.initial_weights import checkpoint_follows


@dataclass(frozen=True)
class TrainedRun:
    """Draws pictures with a checkpoint of a run.

    Attributes:
        run: the run directory.
        config: what it was trained with, with the files that the run keeps.
        weights: which weights are loaded.
        system: the networks, on `device`, in evaluation mode while drawing.
        vocabulary: of the run's captions.
        device: where images are drawn.
        data: folder of the run's data, where a person named one.
    """

    run: Path
    config: TrainConfig
    weights: ChosenWeights
    system: Painter
    vocabulary: Vocabulary
    device: torch.device
    data: str = ""

    @classmethod
    def open(cls, run: Path, checkpoint: str, device: torch.device, data: str = "") -> TrainedRun:
        """Load a run's networks.

        Args:
            run: run directory.
            checkpoint: latest, a number of images seen, or an exported file.
            device: where to draw.
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
        if not isinstance(system, Painter):
            raise RunError(f"{run} is a run of {config.system.name}, which draws no pictures")
        chosen.load(system.modules)
        system.modules.to(device)
        return cls(run, config, chosen, system, vocabulary, device, data)

    @staticmethod
    def checkpoints(run: Path) -> list[int]:
        """Return the numbers of images of the run's checkpoints, ascending."""
        return list_checkpoints(run)

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
        """Side of the pictures in pixels."""
        return self.system.resolution

    def draw_latest_weights(self) -> None:
        """Draw with the trained weights from now on, where the run keeps an average of them."""
        for average in self.system.averages:
            average.target.load_state_dict(average.source.state_dict())

    def draw(self, numbers: range, seed: int, split: str, rules: DrawingRules = PLAIN) -> Tensor:
        """Draw images number `numbers` of an evaluation: uint8 (B, 3, R, R) on the device.

        Noise and caption of image i are functions of (seed, i) alone.
        """
        opened = self.split(split)
        captions = [caption_of(opened, number, seed, rules) for number in numbers]
        latent = rules.noise(numbers, self.system.noise_width, seed)
        tokens, lengths = self.read(captions, seed, rules)
        drawn = self.system.draw(tokens, lengths, latent.to(self.device))
        return rules.levels(drawn.images[-1])

    def read(
        self, captions: Sequence[str], seed: int, rules: DrawingRules
    ) -> tuple[Tensor, Tensor]:
        """Return tokens int64 (B, T) and lengths (B,) of captions, on the device."""
        words = rules.caption_words or self.config.data.words
        tokens, lengths = encode_captions(captions, self.vocabulary, words, seed)
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


def caption_of(split: Split, number: int, seed: int, rules: DrawingRules) -> str:
    """Return the caption that image `number` of an evaluation is made of."""
    captions = split.sample(number % split.count).captions
    return captions[rules.caption_of(number, split.count, len(captions), seed)]


def to_uint8(images: Tensor) -> Tensor:
    """Turn [-1, 1] into 0..255, clamped and rounded to the nearest; on the CPU."""
    return PLAIN.levels(images).cpu()
