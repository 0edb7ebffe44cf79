"""CLIP score: how well images fit the captions that they were made of.

Hessel et al. (EMNLP 2021) rate an image by max(cos(image, caption), 0) of CLIP's codes (Radford
et al., ICML 2021) times a constant; theirs is 2.5, here it is 100, as torchmetrics and the
text-to-image literature have it. The score is the mean over images, so sums of the ratings and
of their squares suffice for it and its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.common.terminal import quiet
from t2i_hpc.evaluation.collectors import FeatureBatch
from t2i_hpc.evaluation.detectors.detector import cleanly, exact_inference
from t2i_hpc.models.pretrained_folder import PretrainedFolder
from t2i_hpc.runs.partial_statistics import Arrays

if TYPE_CHECKING:
    from transformers import BatchEncoding


_KEY = "evaluation.clip"
_TOKENIZER = "tokenizer.json"
_TEXTS = 64  # encoded together
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
COUNT, TOTAL, SQUARES = "clip_count", "clip_total", "clip_squares"
NAMES = (COUNT, TOTAL, SQUARES)
Rate = Callable[[range, Tensor], npt.NDArray[np.float64]]


def clip_identity(given: str) -> str:
    """Return what a protocol says of CLIP: hashes of weights and tokenizer, and preprocessing.

    Args:
        given: folder of the network, or its model.safetensors.

    Raises:
        EvaluationError: the folder, a file or the library that reads it is not there.
    """
    folder = _open(given)
    return (
        f"weights {folder.sha256}, tokenizer {sha256_of_file(folder.folder / _TOKENIZER)}, "
        f"antialiased bicubic to the network's size, whole levels, (x / 255 - {MEAN}) / {STD}"
    )


class CLIP:
    """Scores images with their captions; arguments and errors as of :func:`clip_identity`.

    Raises:
        EvaluationError: weights and tokenizer do not fit together.
    """

    def __init__(self, given: str, device: torch.device) -> None:
        from transformers import AutoTokenizer, CLIPModel

        folder = _open(given)
        self._network = folder.load(CLIPModel, device)
        self._device = device
        config: Any = self._network.config
        self._size: int = config.vision_config.image_size
        self._max_tokens: int = config.text_config.max_position_embeddings
        try:
            with quiet():
                self._tokenize = AutoTokenizer.from_pretrained(folder.folder, local_files_only=True)
        except Exception as error:  # the library raises nothing narrower
            raise _unreadable(folder) from error
        if len(self._tokenize) > config.text_config.vocab_size:
            raise _unreadable(folder)
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD)
        )

    def captions(self, captions: Sequence[str]) -> Tensor:
        """Return the codes of n texts, float32 (n, D), of length 1.

        A text of more tokens than CLIP reads loses its last ones.
        """
        with exact_inference():
            blocks = [
                self._text_codes(captions[start : start + _TEXTS])
                for start in range(0, len(captions), _TEXTS)
            ]
        return F.normalize(torch.cat(blocks), dim=1)

    def scores(self, images: Tensor, captions: Tensor) -> npt.NDArray[np.float64]:
        """Return max(100 cos(image, caption), 0) of each pair, (n,).

        Args:
            images: uint8 (n, 3, R, R).
            captions: their codes, float (n, D).
        """
        with exact_inference():
            pixels = cleanly(images.to(self._device), self._size).round() / 255
            seen = self._network.vision_model(pixel_values=(pixels - self._mean) / self._std)
            codes = F.normalize(self._network.visual_projection(seen.pooler_output), dim=1)
            cosines = (codes.double() * captions.to(codes.device).double()).sum(dim=1)
        scores: npt.NDArray[np.float64] = (100 * cosines).clamp_min(0).cpu().numpy()
        return scores

    def _text_codes(self, captions: Sequence[str]) -> Tensor:
        read = self._network.text_model(**self._tokens(captions))
        codes: Tensor = self._network.text_projection(read.pooler_output)
        return codes

    def _tokens(self, captions: Sequence[str]) -> BatchEncoding:
        tokens: BatchEncoding = self._tokenize(
            list(captions),
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        )
        return tokens.to(self._device)


def _open(given: str) -> PretrainedFolder:
    return PretrainedFolder.open(given, _KEY, "clip", (_TOKENIZER,))


def _unreadable(folder: PretrainedFolder) -> EvaluationError:
    return EvaluationError(
        f"{_KEY}: {folder.folder / _TOKENIZER} is damaged or another network's; copy the folder "
        "again"
    )


class RatingSums:
    """Number, sum and sum of squares of the images' ratings.

    Args:
        rate: rates images, by number and pixels uint8 (n, 3, R, R): float64 (n,) in [0, 100].
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._count = np.zeros((), dtype=np.int64)
        self._total, self._squares = np.zeros(()), np.zeros(())

    def add(self, batch: FeatureBatch) -> None:
        """Rate the images of a batch."""
        ratings = self._rate(batch.numbers, batch.images)
        self._count += len(ratings)
        self._total += ratings.sum()
        self._squares += (ratings**2).sum()

    def arrays(self) -> Arrays:
        """Return the sums, () each."""
        return {COUNT: self._count, TOTAL: self._total, SQUARES: self._squares}


def clip_score(sums: Arrays) -> tuple[float, float]:
    """Return the mean rating of at least two images and its standard error, both 0 to 100."""
    count = int(sums[COUNT])
    mean = float(sums[TOTAL]) / count
    variance = (float(sums[SQUARES]) - count * mean**2) / (count - 1)
    return mean, math.sqrt(max(variance, 0.0) / count)
