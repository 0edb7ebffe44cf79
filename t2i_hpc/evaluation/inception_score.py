"""Inception score from sums: exp of the mean divergence of p(y|x) from p(y), per split.

    IS = exp( E_x KL( p(y|x) ‖ p(y) ) )                    (Salimans et al., NeurIPS 2016)

    E_x KL = (1/n) Σ_x Σ_y p(y|x) log p(y|x)  −  Σ_y p(y) log p(y),   p(y) = (1/n) Σ_x p(y|x)

So a split needs its count, Σ p and Σ p log p: shards add up, whatever their order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2i_hpc.evaluation.collectors import FeatureBatch, Groups
from t2i_hpc.runs.partial_statistics import Arrays

COUNT, TOTAL, NEGENTROPY = "split_count", "split_total", "split_negentropy"
NAMES = (COUNT, TOTAL, NEGENTROPY)


class ScoreSums:
    """Sums of the class probabilities of each split.

    Args:
        splits: the split of each image, int64 (images,).
        count: number of splits S.
        classes: number of classes C.
        device: where the sums are kept.
    """

    def __init__(self, splits: Groups, count: int, classes: int, device: torch.device) -> None:
        self._splits = torch.from_numpy(splits)
        self._count = torch.zeros(count, dtype=torch.int64, device=device)
        self._total = torch.zeros(count, classes, dtype=torch.float64, device=device)
        self._negentropy = torch.zeros(count, dtype=torch.float64, device=device)

    def add(self, batch: FeatureBatch) -> None:
        """Add the images of a batch by their logits, float (n, C)."""
        logs = batch.logits.double().log_softmax(dim=1)
        probabilities = logs.exp()
        split = self._splits[batch.numbers.start : batch.numbers.stop].to(logs.device)
        self._count.index_add_(0, split, torch.ones_like(split))
        self._total.index_add_(0, split, probabilities)
        self._negentropy.index_add_(0, split, (probabilities * logs).sum(dim=1))

    def arrays(self) -> Arrays:
        """Return the sums by name: int64 (S,), float64 (S, C), float64 (S,)."""
        sums = (self._count, self._total, self._negentropy)
        return {name: value.cpu().numpy() for name, value in zip(NAMES, sums, strict=True)}


def inception_score(sums: Arrays) -> tuple[float, float]:
    """Return the mean over splits and their standard deviation (divisor S).

    Args:
        sums: of all images; every split must hold at least one.
    """
    count, total, negentropy = (torch.from_numpy(sums[name]) for name in NAMES)
    scores = _scores(count.double(), total, negentropy)
    return float(scores.mean()), float(scores.std(correction=0))


def _scores(count: Tensor, total: Tensor, negentropy: Tensor) -> Tensor:
    marginal = total / count[:, None]
    entropy = -torch.special.xlogy(marginal, marginal).sum(dim=1)
    scores: Tensor = (negentropy / count + entropy).exp()
    return scores
