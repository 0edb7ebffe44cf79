"""R-precision's rule: the own caption among captions of other classes, all from (seed, i)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.split import Split
from t2i_hpc.evaluation.r_precision import CaptionRanker, CaptionTable
from t2i_hpc.sampling.rules import PLAIN, GenerationRules

SAMPLES, EACH = 30, 3
TABLE = CaptionTable(
    [f"{sample} {place}" for sample in range(SAMPLES) for place in range(EACH)],
    np.arange(SAMPLES + 1) * EACH,
    np.arange(SAMPLES) % 4,
)


def _sentences(captions: Sequence[str]) -> Tensor:
    """Sample s is at angle s; its captions a little apart."""
    places = [tuple(map(int, caption.split())) for caption in captions]
    angles = torch.tensor([sample * 0.2 + 0.01 * place for sample, place in places])
    return torch.stack([angles.cos(), angles.sin()], 1)


def _ranker(offset: float, candidates: int = 12, seed: int = 1) -> CaptionRanker:
    """Images whose code lies `offset` samples beside their own."""

    def codes(images: Tensor) -> Tensor:
        angles = (images[:, 0, 0, 0].float() % SAMPLES + offset) * 0.2
        return torch.stack([angles.cos(), angles.sin()], 1)

    return CaptionRanker(TABLE, _sentences, codes, candidates=candidates, seed=seed, rules=PLAIN)


def _images(numbers: range) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)


def _hits(ranker: CaptionRanker, numbers: range) -> list[bool]:
    found: list[bool] = ranker(numbers, _images(numbers)).tolist()
    return found


def test_own_codes_hit_and_far_ones_miss() -> None:
    assert all(_hits(_ranker(0.05), range(60)))
    far = _hits(_ranker(7.0), range(60))
    assert np.mean(far) < 0.5


def test_hits_do_not_depend_on_the_company() -> None:
    ranker = _ranker(1.5)
    whole = _hits(ranker, range(60))
    assert 0 < sum(whole) < 60
    shards = [
        hit for start in range(0, 60, 7) for hit in _hits(ranker, range(start, min(60, start + 7)))
    ]
    assert shards == whole
    assert _hits(_ranker(1.5, seed=2), range(60)) != whole


def test_more_candidates_are_harder() -> None:
    shares = [np.mean(_hits(_ranker(1.5, count), range(200))) for count in (2, 5, 60)]
    assert shares[0] > shares[1] > shares[2]


@pytest.mark.parametrize("mode", ["one", "all"])
def test_the_own_caption_comes_first_and_the_others_are_of_other_classes(mode: str) -> None:
    rules = GenerationRules(mode)
    for number in (0, 29, 30, 77):
        chosen = TABLE.candidates(number, 100, 1, rules)
        sample = number % SAMPLES
        assert len(chosen) == 100
        assert chosen[0] // EACH == sample
        assert chosen[0] % EACH == rules.caption_of(number, SAMPLES, EACH, 1)
        assert all(TABLE.classes[chosen[1:] // EACH] != TABLE.classes[sample])


def test_a_table_holds_all_captions_of_a_split(shards: Path) -> None:
    split = Split.open(DataConfig(path=str(shards)), "train")
    table = CaptionTable.of(split)
    assert len(table.texts) == table.first[-1]
    assert list(table.texts[table.first[4] : table.first[5]]) == list(split.sample(4).captions)
    assert table.classes[4] == split.sample(4).class_id


def test_one_class_alone_is_refused() -> None:
    table = CaptionTable(["a", "b"], np.array([0, 1, 2]), np.array([7, 7]))
    with pytest.raises(EvaluationError, match="of one class"):
        table.check("train")
