"""Images that are stored losslessly: as they are, or as png where pixels had to move."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.images import crop_box, decode
from t2i_hpc.data.split import Split
from t2i_hpc.data.verification import verify_split
from tests.support.data import draw_image, image_bytes, make_cub

FORMS = ("JPEG", "PNG", "WEBP")


def prepare(tmp_path: Path) -> ShardsConfig:
    """Return a build of one image a format, all with the same suffix."""
    images = tmp_path / "in"
    images.mkdir()
    for number, form in enumerate(FORMS):
        (images / f"{number}.jpg").write_bytes(image_bytes(number, form, 60, 48))
        (images / f"{number}.txt").write_text("one")
    return ShardsConfig(images=str(images), output=str(tmp_path / "out"), format="original")


def opened(config: ShardsConfig) -> Split:
    built = build_split(config)
    verify_split(built.manifest, lambda _: None)
    assert built.small == 0
    return Split.open(DataConfig(path=config.output), config.split)


def test_originals_are_kept_byte_for_byte(tmp_path: Path) -> None:
    split = opened(prepare(tmp_path))
    for number, form in enumerate(FORMS):
        sample = split.sample(number)
        assert (sample.image_format, sample.image) == (
            form.lower(),
            image_bytes(number, form, 60, 48),
        )
    assert (split.manifest.size, split.manifest.smallest) == (48, 48)


def test_what_exif_turns_becomes_png(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    draw_image(0, 60, 48).save(stream, "JPEG", exif=exif)
    (Path(config.images) / "0.jpg").write_bytes(stream.getvalue())
    split = opened(config)
    assert split.sample(0).image_format == "png"
    assert np.array_equal(split.image(0), np.rot90(decode(stream.getvalue()), -1))


def test_what_a_box_cuts_becomes_png(tmp_path: Path) -> None:
    images, captions = make_cub(tmp_path / "in")
    config = ShardsConfig(
        source="cub",
        images=str(images),
        captions=str(captions),
        output=str(tmp_path / "out"),
        format="original",
    )
    split = opened(config)
    original = decode(image_bytes(2, "JPEG", 80, 60))  # the first of the second species
    assert split.sample(0).image_format == split.manifest.image_format == "png"
    assert np.array_equal(split.image(0), crop_box(original, (20, 15, 30, 24)))


def test_png_is_lossless_and_scaled(tmp_path: Path) -> None:
    split = opened(replace(prepare(tmp_path), format="png", size=24))
    scaled = draw_image(1, 60, 48).resize((30, 24), Image.Resampling.BILINEAR)
    assert np.array_equal(split.image(1), np.asarray(scaled))
