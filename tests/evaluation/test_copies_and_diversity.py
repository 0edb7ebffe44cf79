"""CMMD, FID∞, memorization and per-prompt diversity: by hand, by others' code, of a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from transformers import CLIPModel
from transformers.models.clip import CLIPImageProcessor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.evaluation.build import comparisons
from t2i_hpc.evaluation.cmmd import code_discrepancy
from t2i_hpc.evaluation.detectors import build_detector
from t2i_hpc.evaluation.detectors.clip_codes import CLIPCodes
from t2i_hpc.evaluation.fid import Moments
from t2i_hpc.evaluation.fid_infinity import extrapolated_distance
from t2i_hpc.evaluation.memorization import memorization
from t2i_hpc.evaluation.prompt_diversity import caption_diversities, mean_and_error
from t2i_hpc.sampling.rules import GenerationRules
from tests.commands.trained import make_run
from tests.evaluation.conftest import some_images
from tests.evaluation.pretrained import SIZE, WIDTH, save_clip

CPU = torch.device("cpu")
Rows = npt.NDArray[np.float32]
# What clip-mmd 0.0.2, a port of the authors' code, gives in float64 for the rows below.
CMMD = 3.7494532373829603


def _rows(count: int, seed: int, shift: float = 0.0, width: int = 12) -> Rows:
    values = np.random.default_rng(seed).standard_normal((count, width)) + shift
    return values.astype(np.float32)


def test_cmmd_is_its_authors() -> None:
    found = code_discrepancy(_rows(150, 1, 0.7), _rows(130, 2), device=CPU)
    assert found == pytest.approx(CMMD, rel=1e-6)
    assert code_discrepancy(_rows(9, 1), _rows(9, 1), device=CPU) == pytest.approx(0, abs=1e-9)


def test_clips_codes_are_transformers_own(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    images = some_images(3, SIZE, seed=2)
    network, processor = CLIPModel.from_pretrained(folder), CLIPImageProcessor()
    as_is = {"do_resize": False, "do_center_crop": False}
    pixels = processor(list(images), return_tensors="pt", **as_is)
    with torch.no_grad():
        seen = network.vision_model(pixel_values=pixels["pixel_values"])
        codes = network.visual_projection(seen.pooler_output)
    detector = CLIPCodes(str(folder), CPU)
    found = detector.features(images)
    assert found.shape == (3, WIDTH)
    assert detector.identity.metric_name == "FD (CLIP)"
    torch.testing.assert_close(found, codes / codes.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)


def _distance(first: Rows, second: Rows) -> float:
    """Fréchet distance by the eigenvalues of Σ₁ Σ₂."""
    means = first.mean(0, dtype=np.float64) - second.mean(0, dtype=np.float64)
    one, other = (np.cov(rows.astype(np.float64).T) for rows in (first, second))
    roots = np.sqrt(np.linalg.eigvals(one @ other).real.clip(0)).sum()
    return float(means @ means + np.trace(one) + np.trace(other) - 2 * roots)


def test_fid_infinity_is_the_line_at_zero() -> None:
    generated, real = _rows(200, 1, 0.7), _rows(130, 2)
    moments = Moments.empty(12)
    moments.add_rows(torch.from_numpy(real))
    found = extrapolated_distance(generated, moments.gaussian(), points=7, seed=3, device=CPU)
    draws = np.random.RandomState(3)
    counts = np.linspace(20, 200, 7).astype(int)
    distances = [_distance(generated[draws.permutation(200)[:n]], real) for n in counts]
    line, covariance = np.polyfit(1 / counts, distances, 1, cov=True)
    assert found[0] == pytest.approx(line[1], rel=1e-7)
    assert found[1] == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-6)
    # Few images are biased upwards, so the line ends below the distance of all.
    assert found[0] < _distance(generated, real)


def test_diversity_is_the_mean_cosine_distance_of_pairs() -> None:
    rows = _rows(24, 1, 0.5)
    rows[4:8] = rows[4]
    units = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    expected = [
        np.mean([1 - a @ b for i, a in enumerate(group) for b in group[i + 1 :]])
        for group in units.reshape(6, 4, -1)
    ]
    found = caption_diversities(rows, 4)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[1] == pytest.approx(0, abs=1e-12)
    mean, error = mean_and_error(found)
    assert (mean, error) == pytest.approx((np.mean(expected), np.std(expected, ddof=1) / 6**0.5))


def test_memorization_finds_copies_by_what_held_out_images_do() -> None:
    training, held_out, generated = _rows(90, 1, 30), _rows(40, 2, 30), _rows(50, 3, 30)
    generated[:20] = training[60:80]
    generated[3] += 1e-3
    training[85] = training[60]
    found = memorization(generated, held_out, training, share=0.05, device=CPU)
    apart = [
        np.sqrt(np.square(training.astype(np.float64) - row).sum(1))
        for row in (*generated, *held_out)
    ]
    expected = np.min(apart, axis=1)
    assert found.apart == pytest.approx(expected[:50], rel=1e-6, abs=1e-9)
    assert found.nearest.tolist() == np.argmin(apart, axis=1)[:50].tolist()
    assert found.apart[0] == 0
    assert found.threshold == pytest.approx(np.sort(expected[50:])[1])  # 2 of 40 are 5 %
    share, error = found.score
    assert share == pytest.approx(np.mean(expected[:50] <= found.threshold))
    assert 0.4 <= share < 0.6
    assert error == pytest.approx((share * (1 - share) / 50) ** 0.5)
    assert set(found.closest(20)) == set(range(20))


def test_images_in_a_row_share_a_caption() -> None:
    one, four = GenerationRules("all"), GenerationRules("all", images_per_caption=4)
    assert [four.sample_of(n, 3) for n in range(14)] == [0] * 4 + [1] * 4 + [2] * 4 + [0] * 2
    choice = one.text()["caption_choice"]
    captions = [four.caption_of(4 * n + n % 4, 3, 5, 1) for n in range(20)]
    assert captions == [one.caption_of(n, 3, 5, 1) for n in range(20)]
    assert four.text()["caption_choice"] == f"4 images in a row of each: {choice}"


@pytest.fixture
def run(shards: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", shards, checkpoints=(200,))


def config_of(*words: str) -> EvaluateConfig:
    usual = ("evaluation.detector=efficientnet_lite0", "evaluation.images=8")
    more = ("evaluation.batch_size=4", "evaluation.metrics=[memorization,diversity]")
    return compose_config("evaluate", [*usual, *more, *words], EvaluateConfig)


def _rows_of(config: EvaluateConfig) -> list[dict[str, Any]]:
    (comparison,) = comparisons(config)
    detector = build_detector(config.evaluation, CPU)
    for shard in reversed(range(comparison.sharding.shards)):
        comparison.compute([shard], detector)
    return comparison.score()


def test_a_run_is_compared_with_its_own_training_images(run: Path) -> None:
    words = (f"run={run}", "evaluation.images_per_caption=4", "evaluation.save_images=npz")
    copied, diversity = _rows_of(config_of(*words, "evaluation.shards=2"))
    assert copied["metric"] == "memorization (EfficientNet-Lite0)"
    assert copied["protocol_text"]["training_images"] > 2
    assert 0 <= copied["value"] <= 1
    assert diversity["metric"] == "per-prompt diversity (EfficientNet-Lite0)"
    assert 0 < diversity["value"] < 1
    for kind, across in (("nearest", 6), ("diversity", 4)):
        path = run / kind / "0000000200.png"
        with Image.open(path) as picture:
            assert picture.width > across * 64
        facts = json.loads(path.with_suffix(".json").read_text())
        assert facts["checkpoint"] == copied["checkpoint"]
    pairs = json.loads((run / "nearest" / "0000000200.json").read_text())["pairs"]
    assert len(pairs) == 8
    captions = {pair["image"] // 4: pair["caption"] for pair in pairs}
    assert all(pair["caption"] == captions[pair["image"] // 4] for pair in pairs)
    written = next(run.glob("evaluations/*/*/images/000000000.npz"))
    with np.load(written) as archive:  # pictures are no images of the evaluation
        assert len(archive["images"]) == 4


def test_a_folder_says_neither_captions_nor_training_images(tmp_path: Path) -> None:
    for seed, name in enumerate(("made", "real", "seen")):
        (tmp_path / name).mkdir()
        for number, image in enumerate(some_images(8, 16, seed)):
            path = tmp_path / name / f"{number}.png"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    words = (f"images={tmp_path}/made", f"reference={tmp_path}/real")
    alone = "evaluation.metrics=[memorization]"
    with pytest.raises(EvaluationError, match=r"with evaluation\.training="):
        list(comparisons(config_of(*words, alone)))
    seen = f"evaluation.training={tmp_path}/seen"
    with pytest.raises(EvaluationError, match=r"fewer than evaluation\.training_images=9"):
        list(comparisons(config_of(*words, alone, seen, "evaluation.training_images=9")))
    with pytest.raises(EvaluationError, match="which images share a caption"):
        list(comparisons(config_of(*words, "evaluation.metrics=[diversity]")))
    (row,) = _rows_of(config_of(*words, alone, seen))
    assert row["metric"] == "memorization (EfficientNet-Lite0)"
