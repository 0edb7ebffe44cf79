"""Whether a generated image finds its own caption among others (R-precision).

The rule is that of AttnGAN's successors: the image's DAMSM code is compared by cosine with the
sentence of its own caption and of 99 captions of images of another class (of any other image,
where each has a class of its own). Which captions those are comes from (seed, i). A tie with
the own caption counts as found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.seeds import generator
from t2i_hpc.data.split import Split
from t2i_hpc.generation.rules import DrawingRules

Numbers = npt.NDArray[np.int64]
_BLOCK = 512  # captions encoded together; always the same ones, so that bits do not depend on parts


@dataclass(frozen=True)
class CaptionTable:
    """All captions of a split.

    Attributes:
        texts: M captions, those of one sample after those of another.
        first: int64 (N + 1,), place of each sample's first caption, and M.
        classes: int64 (N,).
    """

    texts: Sequence[str]
    first: Numbers
    classes: Numbers

    @classmethod
    def of(cls, split: Split) -> CaptionTable:
        """Read the captions of a split.

        Raises:
            EvaluationError: all samples are of one class, so no caption is another's.
        """
        texts: list[str] = []
        first, classes = [0], []
        for number in range(split.count):
            sample = split.sample(number)
            texts += sample.captions
            first.append(len(texts))
            classes.append(sample.class_id)
        table = cls(texts, np.array(first), np.array(classes))
        table.check(split.manifest.split)
        return table

    def check(self, split: str) -> None:
        """Refuse captions among which none is another class's.

        Raises:
            EvaluationError: all samples of the split are of one class.
        """
        if len(np.unique(self.classes)) < 2:
            raise EvaluationError(
                f"all images of the split {split!r} are of one class: R-precision needs captions "
                "of other classes"
            )

    def candidates(self, number: int, count: int, seed: int, rules: DrawingRules) -> Numbers:
        """Return the places of the captions that image `number` chooses among, its own first."""
        sample = number % len(self.classes)
        place = rules.caption_of(
            number, len(self.classes), int(self.first[sample + 1] - self.first[sample]), seed
        )
        rng = generator(seed, "mismatching captions", number)
        others: list[int] = []
        while len(others) < count - 1:
            drawn = rng.integers(len(self.classes), size=count)
            others += drawn[self.classes[drawn] != self.classes[sample]].tolist()
        chosen = np.array(others[: count - 1])
        begin, end = self.first[chosen], self.first[chosen + 1]
        wrong = begin + (rng.random(len(chosen)) * (end - begin)).astype(np.int64)
        return np.concatenate([[self.first[sample] + place], wrong])


class CaptionMatcher:
    """Judges generated images by number.

    Args:
        table: the captions that they were made of, and the others.
        encode_captions: gives sentences, float (n, D), of n captions.
        encode_images: gives codes, float (n, D), of uint8 images (n, 3, R, R).
        candidates: captions that an image chooses among.
        seed, rules: by which the images' captions were chosen.
    """

    def __init__(
        self,
        table: CaptionTable,
        encode_captions: Callable[[Sequence[str]], Tensor],
        encode_images: Callable[[Tensor], Tensor],
        *,
        candidates: int,
        seed: int,
        rules: DrawingRules,
    ) -> None:
        self._table, self._candidates, self._seed, self._rules = table, candidates, seed, rules
        self._encode_captions, self._encode_images = encode_captions, encode_images

    def __call__(self, numbers: range, images: Tensor) -> npt.NDArray[np.bool_]:
        """Return whether each image's own caption is among the nearest: bool (n,)."""
        choice = np.stack(
            [
                self._table.candidates(number, self._candidates, self._seed, self._rules)
                for number in numbers
            ]
        )
        with torch.inference_mode():
            codes = F.normalize(self._encode_images(images).float(), dim=1)
            sentences = self._sentences[torch.from_numpy(choice).to(self._sentences.device)]
            cosines = (sentences * codes[:, None].to(sentences.device)).sum(dim=2)
            found = cosines[:, 0] >= cosines[:, 1:].amax(dim=1)
        hits: npt.NDArray[np.bool_] = found.cpu().numpy()
        return hits

    @cached_property
    def _sentences(self) -> Tensor:
        """All captions' sentences of length 1, float32 (M, D)."""
        texts = self._table.texts
        with torch.inference_mode():
            blocks = [
                self._encode_captions(texts[start : start + _BLOCK]).float()
                for start in range(0, len(texts), _BLOCK)
            ]
            return F.normalize(torch.cat(blocks), dim=1)
