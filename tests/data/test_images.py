"""Decoding, resizing and cropping, against known pixels and Pillow."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageCms

from t2i_hpc.common.errors import DataError
from t2i_hpc.data import images
from t2i_hpc.data.images import (
    center_crop,
    crop_and_flip,
    crop_box,
    decode,
    encode,
    notes_of,
    resize_shorter,
    to_srgb,
    turn,
)
from tests.support.data import draw_image, image_bytes, random_bytes


def file_of(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_decodes_what_pillow_decodes(form: str) -> None:
    content = image_bytes(4, form, 61, 47)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    decoded = decode(content)
    assert decoded.shape == (47, 61, 3)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded - expected).max() <= (3 if form == "JPEG" else 0)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG")],
)
def test_other_kinds_of_pixels_become_rgb(mode: str, form: str) -> None:
    image = draw_image(3).convert(mode)
    decoded = decode(file_of(image, form)).astype(int)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decoded - expected).mean() < 3


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 2), (0, 0, 255, 255))
    decoded = decode(file_of(image, "PNG"))
    assert decoded[2, 1].tolist() == [0, 0, 255]
    assert decoded[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_truncated_images_are_refused(form: str) -> None:
    content = image_bytes(5, form, 90, 70)
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(DataError, match="bird 7 cannot be decoded"):
            decode(content[: int(len(content) * part)], "bird 7")


@pytest.mark.parametrize("content", [b"", b"GIF89a" + random_bytes(200), random_bytes(300)])
def test_what_is_no_image_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(DataError) as caught:
        decode(content, "x.jpg")
    assert "\n" not in str(caught.value)
    assert "x.jpg" in str(caught.value)


def test_gif_is_not_offered() -> None:
    with pytest.raises(DataError):
        decode(file_of(draw_image(1), "GIF"))


def test_16_bit_pixels_are_refused() -> None:
    deep = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    with pytest.raises(DataError, match="I;16"):
        decode(file_of(deep, "PNG"))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_too_many_pixels_are_refused(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 40 - 1)
    with pytest.raises(DataError, match="40 by 40 pixels"):
        decode(image_bytes(0, form))


def test_damage_never_raises_anything_but_a_data_error() -> None:
    chance = random.Random(1)
    contents = [image_bytes(2, form, 50, 50) for form in ("PNG", "WEBP", "JPEG")]
    for _ in range(150):
        content = bytearray(chance.choice(contents))
        for _ in range(chance.randrange(1, 12)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            assert decode(bytes(content)).dtype == np.uint8
        except DataError as error:
            assert "\n" not in str(error)


def test_stuffing_before_the_end_of_a_jpeg_is_no_damage() -> None:
    content = image_bytes(6, "JPEG")
    stuffed = content[:-2] + b"\x00" * 4 + content[-2:]
    assert np.array_equal(decode(stuffed), decode(content))


@pytest.mark.parametrize(("form", "tolerance"), [("jpeg", 3.0), ("png", 0.0), ("webp", 6.0)])
def test_encoded_images_come_back(form: str, tolerance: float) -> None:
    image = np.asarray(draw_image(8, 64, 48))
    content = encode(image, form, 95)
    assert content == encode(image, form, 95)
    assert np.abs(decode(content).astype(int) - image).mean() <= tolerance


def test_slices_can_be_encoded() -> None:
    image = np.asarray(draw_image(8, 64, 48))[3:40, 5:60]
    assert decode(encode(image, "jpeg", 95)).shape == (37, 55, 3)


def test_jpeg_keeps_full_color_resolution() -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:, ::2, 0] = 255  # red columns of one pixel: 4:2:0 would blur them
    assert decode(encode(pixels, "jpeg", 95))[:, ::2, 0].mean() > 240


@pytest.mark.parametrize(("width", "height"), [(100, 60), (60, 100), (81, 81), (17, 33)])
def test_resize_is_pillows(width: int, height: int) -> None:
    image = draw_image(2, width, height)
    resized = resize_shorter(np.asarray(image), 32)
    shorter = min(width, height)
    size = (32 * width // shorter, 32 * height // shorter)
    assert min(size) == 32
    assert np.array_equal(resized, np.asarray(image.resize(size, Image.Resampling.BILINEAR)))


def test_center_crop() -> None:
    image = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    assert np.array_equal(center_crop(image, 4), image[1:5, 2:6])


def test_random_crops_reach_every_place_and_mirror_half() -> None:
    image = np.zeros((6, 5, 3), dtype=np.uint8)
    image[:, :, 0], image[:, :, 1] = np.arange(6)[:, None], np.arange(5)[None, :]
    seen = set()
    for seed in range(400):
        cut = crop_and_flip(image, 4, np.random.default_rng(seed))
        assert cut.shape == (4, 4, 3)
        seen.add((int(cut[0, 0, 0]), int(cut[0, :, 1].min()), bool(cut[0, 0, 1] > cut[0, 1, 1])))
    assert seen == {(top, left, flip) for top in range(3) for left in range(2) for flip in (0, 1)}


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        # reach = int(0.75 * 40) = 30, center (80, 60)
        ((60.0, 50.0, 40.0, 20.0), (30, 90), (50, 110)),
        # reach = int(0.75 * 50) = 37, center (25, 20): cut off at the border
        ((0.0, 5.0, 50.0, 30.0), (0, 57), (0, 62)),
        # fractions are dropped first: (10, 10, 21, 21), reach 15, center int(20.5) = 20
        ((10.9, 10.9, 21.9, 21.9), (5, 35), (5, 35)),
    ],
)
def test_the_crop_around_a_bird(
    box: images.Box, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    assert np.array_equal(crop_box(image, box), image[slice(*rows), slice(*columns)])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file_of(draw_image(1, 30, 20), "PNG", exif=exif)
    turned = turn(decode(content), notes_of(content).orientation)
    assert turned.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))
    if orientation == 3:
        assert np.array_equal(turned, decode(content)[::-1, ::-1])


def jpeg(**options: object) -> bytes:
    stream = io.BytesIO()
    draw_image(3, 60, 44).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def with_scan(first: int, last: int) -> bytes:
    content = bytearray(jpeg())
    place = content.index(b"\xff\xda")
    end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    content[end - 3 : end - 1] = bytes([first, last])
    return bytes(content)


def with_revision(major: int) -> bytes:
    content = bytearray(jpeg())
    content[content.index(b"JFIF\0") + 5] = major
    return bytes(content)


ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
ODD = {
    "a baseline scan of the coefficients 0 to 0": with_scan(0, 0),
    "JFIF of revision 2": with_revision(2),
    "a color transform that is not known": jpeg()[:2] + ADOBE + b"\x07" + jpeg()[20:],
    "stuffing before the end": jpeg()[:-2] + bytes(9) + jpeg()[-2:],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_headers_that_viewers_pass_over(name: str) -> None:
    assert np.array_equal(decode(ODD[name]), decode(jpeg()))


@pytest.mark.parametrize("name", ODD)
def test_damage_behind_an_odd_header_stays_damage(name: str) -> None:
    """A decoder reports its first warning alone, which is that of the header."""
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(ODD[name][: len(ODD[name]) // 2] + b"\xff\xd9")


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_orientations_that_say_nothing_leave_an_image_as_it_is(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(exif=exif)
    image = decode(content)
    assert turn(image, notes_of(content).orientation) is image


def test_profiles_are_converted_to_srgb() -> None:
    pixels = np.full((8, 8, 3), (200, 40, 40), dtype=np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert to_srgb(pixels, srgb) is pixels
    assert to_srgb(pixels, b"no profile") is pixels
    wide = bytearray(srgb)
    # The primaries red and blue are exchanged in the table of tags.
    red, blue = (wide.index(tag, 128) for tag in (b"rXYZ", b"bXYZ"))
    wide[red + 4 : red + 8], wide[blue + 4 : blue + 8] = (
        wide[blue + 4 : blue + 8],
        wide[red + 4 : red + 8],
    )
    named = bytes(wide).replace(b"s\0R\0G\0B", b"o\0t\0h\0e").replace(b"sRGB", b"othe")
    turned = to_srgb(pixels, named)
    assert turned[0, 0].tolist() == pytest.approx([40, 40, 200], abs=3)
