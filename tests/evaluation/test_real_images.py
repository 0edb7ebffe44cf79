"""The real images say what was done to them before they are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.format.manifest import Manifest, Storing
from t2i_hpc.evaluation.build import comparisons
from t2i_hpc.evaluation.stored_images import scaled_jpegs, stored_twice
from tests.commands.trained import make_run
from tests.support.data import make_image_folder

BILINEAR = "antialiased bilinear"


@pytest.mark.parametrize(
    ("storing", "form", "size", "said"),
    [
        (Storing("jpeg", 95, BILINEAR), "jpeg", 304, "compressed as JPEG of quality 95 and scaled"),
        (Storing("jpeg", 95, BILINEAR), "jpeg", 256, "compressed as JPEG of quality 95, which"),
        (
            Storing("png", 0, BILINEAR),
            "png",
            304,
            "were scaled twice (to 304 px, then to 256 px)",
        ),
        (Storing("png", 0, BILINEAR), "png", 256, None),
        (Storing("original", 0, "none"), "jpeg", 500, None),
        (Storing(), "jpeg", 304, "do not record how they store images"),
        (Storing(), "png", 256, None),
    ],
)
def test_what_is_compressed_or_scaled_twice_is_said(
    storing: Storing, form: str, size: int, said: str | None
) -> None:
    manifest = Manifest(Path(), "a", "test", size, 8, form, 6, 3, 57, "", storing=storing)
    warning = stored_twice(manifest, "the split", 256)
    if said is None:
        assert warning is None
        return
    assert warning is not None
    assert said in warning
    assert "format=original" in warning


@pytest.mark.parametrize(
    ("side", "lossy", "warns"), [(256, 3, True), (256, 0, False), (480, 3, False)]
)
def test_jpegs_of_the_compared_size_are_warned_of(side: int, lossy: int, warns: bool) -> None:
    warning = scaled_jpegs(side, lossy, "reference=real", 256)
    assert (warning is not None) == warns
    assert warning is None or "3 real images of reference=real are JPEG files of 256 px" in warning


def test_the_protocol_and_a_warning_tell_how_shards_store_images(tmp_path: Path) -> None:
    pictures = str(make_image_folder(tmp_path / "pictures", range(4), size=90))
    output = tmp_path / "shards"
    config = ShardsConfig(images=pictures, output=str(output), workers=0)
    build_split(replace(config, size=80))
    build_split(replace(config, split="test", format="original"))
    run = make_run(tmp_path / "run", output, checkpoints=(100,))

    def compared(split: str) -> tuple[str, str | None]:
        overrides = [f"run={run}", "evaluation.metrics=[fid]", f"evaluation.split={split}"]
        overrides.append("evaluation.detector=efficientnet_lite0")
        found = next(comparisons(compose_config("evaluate", overrides, EvaluateConfig)))
        return found.protocol.text_of("fid")["stored"], found.warning

    stored, warning = compared("train")
    assert stored == f"jpeg, quality 95, shorter side at most 80 px by {BILINEAR}"
    assert warning is not None
    assert "scaled twice (to 80 px, then to 64 px)" in warning
    stored, warning = compared("test")
    assert stored.startswith("originals")
    assert warning is None
