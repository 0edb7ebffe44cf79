"""The images of a run's checkpoint by number; its networks are built when the first is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.data.split import Split
from t2i_hpc.evaluation.clip_score import CLIP, Rate
from t2i_hpc.evaluation.r_precision import CaptionMatcher, CaptionTable, Judge, matching_encoders
from t2i_hpc.sampling.trained_run import DrawingRules, TrainedRun, caption_of


@dataclass(frozen=True)
class RunImages:
    """Draws and judges.

    Attributes:
        run: the run directory.
        which: its checkpoint, by number of images, or a weights file.
        settings: of the evaluation.
        device: where to draw.
        data: folder of the run's data, where a person named one.
    """

    run: Path
    which: str
    settings: EvaluationConfig
    device: torch.device
    data: str = ""

    @property
    def rules(self) -> DrawingRules:
        """How the images are drawn."""
        return drawing_rules(self.settings)

    @cached_property
    def trained(self) -> TrainedRun:
        """The run's networks, with the weights that are to draw."""
        trained = TrainedRun.open(self.run, self.which, self.device, self.data)
        if self.settings.weights == "latest":
            trained.draw_latest_weights()
        return trained

    def draw(self, numbers: range) -> Tensor:
        """Return uint8 (B, 3, R, R) on the device."""
        return self.trained.draw(numbers, self.settings.seed, self.settings.split, self.rules)

    def describe(self, number: int) -> dict[str, Any]:
        """Return what image `number` is made of: key, caption, seed, checkpoint."""
        split, seed = self._described, self.settings.seed
        return {
            "key": split.sample(number % split.count).key,
            "caption": caption_of(split, number, seed, self.rules),
            "seed": seed,
            "checkpoint": self.trained.checkpoint_sha256,
        }

    @cached_property
    def _described(self) -> Split:
        # A split of its own: images are drawn in another thread than they are described in.
        return self.trained.open_split(self.settings.split)

    def judge(self) -> Judge:
        """Return what says whether an image's own caption wins."""
        settings, trained = self.settings, self.trained
        encoders = matching_encoders(settings, trained, self.rules)
        # A split of its own: images are drawn in another thread than they are judged in.
        table = CaptionTable.of(trained.open_split(settings.split))
        return CaptionMatcher(
            table,
            encoders.sentences,
            encoders.codes,
            candidates=settings.candidates,
            seed=settings.seed,
            rules=self.rules,
        )

    @cached_property
    def clip(self) -> CLIP:
        """The network that rates images, on the device."""
        return CLIP(self.settings.clip, self.device)

    def rate(self) -> Rate:
        """Return what says how well images fit the captions that they were made of."""
        settings, rules, clip = self.settings, self.rules, self.clip
        # A split of its own: images are drawn in another thread than they are rated in.
        split = self.trained.open_split(settings.split)

        def rate(numbers: range, images: Tensor) -> npt.NDArray[np.float64]:
            captions = [caption_of(split, number, settings.seed, rules) for number in numbers]
            return clip.scores(images, captions)

        return rate


def drawing_rules(settings: EvaluationConfig) -> DrawingRules:
    """Return how the settings have images drawn."""
    return DrawingRules(
        settings.captions, settings.truncation, settings.rounding, settings.caption_tokens
    )
