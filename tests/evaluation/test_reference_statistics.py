"""Mean and covariance in files: those of other programs are scored against, ours are for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.comparison import Comparison
from t2i_hpc.evaluation.reference_statistics import (
    check_export,
    read_reference,
    write_reference,
)
from tests.evaluation.comparing import REAL_IMAGES, compute, make_comparison, real_images_of
from tests.evaluation.fakes import FakeDetector

DETECTOR = FakeDetector.identity


def written_by_others(**more: Any) -> dict[str, npt.NDArray[Any]]:
    """What pytorch-fid, TTUR and torch-fidelity make of the real images' features."""
    batches = [real_images_of(range(n, n + 4)) for n in range(0, REAL_IMAGES, 4)]
    features = torch.cat([FakeDetector().features(batch) for batch in batches])[:REAL_IMAGES]
    rows = features.numpy()
    return {"mu": np.mean(rows, axis=0), "sigma": np.cov(rows, rowvar=False), **more}


def against(path: Path, run: Path) -> Comparison:
    """The comparison of before, with a file in place of the real images."""
    found = read_reference(path, DETECTOR)
    plain = make_comparison(run)
    protocol = replace(plain.protocol, data=found.sha256, real_images=found.gaussian.count or 0)
    return replace(plain, protocol=protocol, reference=found.gaussian)


def pytorch_fid(one: Any, other: Any) -> float:
    """pytorch-fid's formula, written out (its own code is no dependency)."""
    difference = one["mu"] - other["mu"]
    root = scipy.linalg.sqrtm(one["sigma"] @ other["sigma"])
    traces = np.trace(one["sigma"]) + np.trace(other["sigma"]) - 2 * np.trace(root.real)
    return float(difference @ difference + traces)


@pytest.mark.parametrize("count", [{}, {"n": np.array(REAL_IMAGES)}, {"arr_0": "images"}])
def test_a_file_of_others_scores_as_the_images_do(count: dict[str, Any], tmp_path: Path) -> None:
    whole = make_comparison(tmp_path / "whole")
    compute(whole)
    (expected,) = whole.score()
    path = tmp_path / "stats.npz"
    if "arr_0" in count:  # ADM's files hold the images, and statistics for sFID
        count = {"arr_0": np.zeros((REAL_IMAGES, 2, 2, 3), np.uint8), "mu_s": np.zeros(3)}
    np.savez_compressed(path, allow_pickle=False, **written_by_others(**count))
    comparison = against(path, tmp_path / "stats")
    compute(comparison)
    (row,) = comparison.score()
    assert row["value"] == pytest.approx(expected["value"], rel=1e-5)
    assert row["protocol"] != expected["protocol"]
    assert row["n_real"] == (REAL_IMAGES if count else 0)
    said = read_reference(path, DETECTOR).warning(DETECTOR) or ""
    assert "does not say which network made it" in said
    assert ("mu_s (sFID) are not used" in said) == ("mu_s" in count)


def test_ours_is_what_other_programs_compute_from(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path)
    compute(comparison)
    (score,) = comparison.score()
    path = tmp_path / "ours.npz"
    assert check_export(path, "real")
    write_reference(path, comparison.real_gaussian(), DETECTOR, "real")
    assert not check_export(path, "real")
    with np.load(path) as ours:
        real = {name: ours[name] for name in ("mu", "sigma")}
    others = written_by_others()
    np.testing.assert_allclose(real["sigma"], others["sigma"], rtol=1e-4, atol=1e-9)
    moments = _generated(comparison)
    theirs = fid_statistics_to_metric(moments, real, verbose=False)["frechet_inception_distance"]
    assert score["value"] == pytest.approx(theirs, rel=1e-5)
    assert score["value"] == pytest.approx(pytorch_fid(moments, real), rel=1e-5)
    again = read_reference(path, DETECTOR)
    assert (again.gaussian.count, again.known, again.warning(DETECTOR)) == (REAL_IMAGES, True, None)
    with pytest.raises(EvaluationError, match="another detector"):
        read_reference(path, replace(DETECTOR, sha256="e" * 64))
    with pytest.raises(EvaluationError, match="holds something else"):
        check_export(path, "other images")


def _generated(comparison: Comparison) -> dict[str, npt.NDArray[Any]]:
    plain = replace(comparison, real_images_of=comparison.subject.images_of)
    whole = replace(plain.protocol, data="generated", real_images=comparison.protocol.images)
    turned = replace(plain, protocol=whole)
    compute(turned)
    gaussian = turned.real_gaussian()
    return {"mu": gaussian.mean.numpy(), "sigma": gaussian.covariance.numpy()}


def broken(name: str) -> Callable[[Path], None]:
    arrays = written_by_others()

    def write(path: Path) -> None:
        if name == "text":
            path.write_text("no archive")
        elif name == "keys":
            np.savez(path, feats=np.zeros(3))
        elif name == "width":
            np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
        elif name == "nan":
            np.savez(path, mu=arrays["mu"] * np.nan, sigma=arrays["sigma"])
        elif name == "pickle":
            np.savez(path, mu=np.array([object()]), sigma=arrays["sigma"])
        else:
            arrays["sigma"][0, 1] += 1.0
            np.savez(path, allow_pickle=False, **arrays)

    return write


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text", "cannot be read"),
        ("keys", "has no mu; it holds feats"),
        ("width", r"has mu \(2048,\) and sigma \(2048, 2048\), and fake has 6 features"),
        ("nan", "holds NaN or Inf"),
        ("pickle", "cannot be read"),
        ("asymmetric", "is no covariance"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(name: str, said: str, tmp_path: Path) -> None:
    broken(name)(tmp_path / "stats.npz")
    with pytest.raises(EvaluationError, match=said):
        read_reference(tmp_path / "stats.npz", DETECTOR)
