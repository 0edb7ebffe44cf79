"""Damaged images: decoded, or refused in words."""

from __future__ import annotations

import io

import pytest
from hypothesis import given

from t2i_hpc.data.image_headers import MAX_PIXELS, check_image
from t2i_hpc.data.images import decode
from tests.support.data import draw_image
from tests.support.mutations import Mutation, fuzz, mutate, mutations, refused

IMAGES = 1000
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {"quality": 90}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_5000_damaged_images_are_decoded_or_refused(kind: str) -> None:
    form, options = KINDS[kind]
    stream, seen = io.BytesIO(), [0, 0]
    draw_image(3, 24, 16).save(stream, form, **options)

    @fuzz(IMAGES)
    @given(mutations())
    def check(changes: list[Mutation]) -> None:
        content = mutate(stream.getvalue(), changes)
        refused(lambda: check_image(content, form.lower(), "a"))
        seen[refused(lambda: fits(content))] += 1

    check()
    assert sum(seen) >= IMAGES


def fits(content: bytes) -> None:
    image = decode(content, "a")
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS
