"""Which group an image belongs to: seeded, equally large groups of all images of a side.

Splits of the Inception score and folds of R-precision are such groups. The membership of image
i is a function of (seed, number of images, i), never of the part that it was drawn in, so the
sums of each group add up over any number of parts.

Inception score from sums: exp of the mean divergence of p(y|x) from p(y), per split.

    IS = exp( E_x KL( p(y|x) ‖ p(y) ) )                    (Salimans et al., NeurIPS 2016)

    E_x KL = (1/n) Σ_x Σ_y p(y|x) log p(y|x)  −  Σ_y p(y) log p(y),   p(y) = (1/n) Σ_x p(y|x)

So a split needs its count, Σ p and Σ p log p: parts add up, whatever their order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from t2i_hpc.evaluation.partial_statistics import Arrays, Seen

Groups = npt.NDArray[np.int64]


def groups_of(images: int, groups: int, seed: int) -> Groups:
    """Return the group of each image, int64 (images,): 0 … `groups` − 1.

    The images are shuffled and cut into runs that differ in length by at most one. NumPy's old
    generator is frozen by its makers, and torch-fidelity shuffles with it: the same seed gives
    the same splits there and here.

    Args:
        images: number of images.
        groups: number of groups, 1 ≤ groups ≤ images.
        seed: 0 ≤ seed < 2³².
    """
    order = np.random.RandomState(seed).permutation(images)
    bounds = [group * images // groups for group in range(groups + 1)]
    member = np.empty(images, dtype=np.int64)
    for group in range(groups):
        member[order[bounds[group] : bounds[group + 1]]] = group
    return member


COUNT, TOTAL, NEGENTROPY = "split_count", "split_total", "split_negentropy"
NAMES = (COUNT, TOTAL, NEGENTROPY)


class ScoreSums:
    """Sums of the class probabilities of each split.

    Args:
        splits: the split of each image of the side, int64 (images,).
        count: number of splits S.
        classes: number of classes C.
        device: where the sums are kept.
    """

    def __init__(self, splits: Groups, count: int, classes: int, device: torch.device) -> None:
        self._splits = torch.from_numpy(splits)
        self._count = torch.zeros(count, dtype=torch.int64, device=device)
        self._total = torch.zeros(count, classes, dtype=torch.float64, device=device)
        self._negentropy = torch.zeros(count, dtype=torch.float64, device=device)

    def add(self, seen: Seen) -> None:
        """Add the images of a batch by their logits, float (n, C)."""
        logs = seen.logits.double().log_softmax(dim=1)
        probabilities = logs.exp()
        split = self._splits[seen.numbers.start : seen.numbers.stop].to(logs.device)
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
