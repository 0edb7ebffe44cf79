"""Decoding a window of a JPEG instead of the whole: about an eighth less work at 256 of 304 px.

libjpeg-turbo 3 skips the rows above and below a window and the transforms left and right of
it. No decoder for NumPy offers that, so its TurboJPEG interface is called directly, where the
library is found: the system's, or the one that the package ``turbojpeg`` brings
(``pip install 't2i-hpc[crop]'``). Training must not depend on what is installed, so it is used
only for files whose pixels cannot differ (YCbCr without subsampling, as our shards hold), and
only if it proves to decode a test image to the same bits.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg

from t2i_hpc.data.image_headers import MAX_PIXELS
from t2i_hpc.data.images import Pixels, window

_DECOMPRESS, _RGB = 1, 0  # TJINIT_DECOMPRESS, TJPF_RGB
_STOP_ON_WARNING, _SUBSAMPLING, _WIDTH, _HEIGHT, _COLORSPACE = 0, 4, 5, 6, 8  # TJPARAM_…
_NOT_SUBSAMPLED, _YCBCR = 0, 1  # TJSAMP_444, TJCS_YCbCr
_BLOCK = 8  # pixels: a window begins at a multiple of it


class _Region(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_int),
        ("y", ctypes.c_int),
        ("w", ctypes.c_int),
        ("h", ctypes.c_int),
    )


class CropDecoder:
    """Decodes windows of JPEGs, one after the other, into the same memory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._handle = self._new_handle()
        self._memory = np.empty(0, dtype=np.uint8)

    def __del__(self) -> None:
        self._library.tj3Destroy(self._handle)

    def decode(
        self, content: bytes, shorter: int, size: int, down: float, across: float
    ) -> Pixels | None:
        """Return what :func:`t2i_hpc.data.images.window` would cut from the decoded file.

        Args:
            content: the file.
            shorter: shorter side in pixels that the image must have.
            size: side of the window in pixels.
            down, across: where it is cut.

        Returns:
            uint8 (size, size, 3), valid until the next call; None where the file is better
            decoded as a whole: another size or kind, or damaged.
        """
        library, handle = self._library, self._handle
        if self._failed(library.tj3DecompressHeader(handle, content, len(content))):
            return None
        height, width = library.tj3Get(handle, _HEIGHT), library.tj3Get(handle, _WIDTH)
        kind = library.tj3Get(handle, _SUBSAMPLING), library.tj3Get(handle, _COLORSPACE)
        if min(height, width) != shorter or kind != (_NOT_SUBSAMPLED, _YCBCR):
            return None
        if height * width > MAX_PIXELS or shorter < size:
            return None
        top, left = int(down * (height - size + 1)), int(across * (width - size + 1))
        extra = left % _BLOCK
        region = _Region(left - extra, top, size + extra, size)
        pixels = self._rows(size, size + extra)
        target, pitch = pixels.ctypes.data, 3 * (size + extra)
        if self._failed(library.tj3SetCroppingRegion(handle, region)):
            return None
        done = library.tj3Decompress8(handle, content, len(content), target, pitch, _RGB)
        return None if self._failed(done) else pixels[:, extra:]

    def _new_handle(self) -> ctypes.c_void_p:
        handle = ctypes.c_void_p(self._library.tj3Init(_DECOMPRESS))
        self._library.tj3Set(handle, _STOP_ON_WARNING, 1)
        return handle

    def _failed(self, code: int) -> bool:
        """Whether a call failed; takes a new handle then, since the old one would remember."""
        if code:
            self._library.tj3Destroy(self._handle)
            self._handle = self._new_handle()
        return bool(code)

    def _rows(self, height: int, width: int) -> Pixels:
        count = 3 * height * width
        if len(self._memory) < count:
            self._memory = np.empty(count, dtype=np.uint8)
        return self._memory[:count].reshape(height, width, 3)


def find_crop_decoder() -> CropDecoder | None:
    """Return a decoder of windows if a library is there that gives the same pixels, else None."""
    library = _find_library()
    return None if library is None else CropDecoder(library)


@cache
def _find_library() -> ctypes.CDLL | None:
    for path in _candidates():
        try:
            library = _declared(ctypes.CDLL(path))
        except (OSError, AttributeError):  # not there, or older than version 3
            continue
        if _is_equal(CropDecoder(library)):
            return library
    return None


def _candidates() -> Iterator[str]:
    system = ctypes.util.find_library("turbojpeg")
    if system:
        yield system
    spec = importlib.util.find_spec("turbojpeg")
    if spec is not None and spec.origin:
        folder = Path(spec.origin).parent / "turbojpeg.libs"
        yield from map(str, sorted(folder.glob("libturbojpeg*.so*")))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare what is called.

    Raises:
        AttributeError: the library is older than version 3.
    """
    handle, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    library.tj3Init.argtypes, library.tj3Init.restype = [number], handle
    library.tj3Destroy.argtypes, library.tj3Destroy.restype = [handle], None
    library.tj3Set.argtypes = [handle, number, number]
    library.tj3Get.argtypes = [handle, number]
    library.tj3DecompressHeader.argtypes = [handle, ctypes.c_char_p, size]
    library.tj3SetCroppingRegion.argtypes = [handle, _Region]
    library.tj3Decompress8.argtypes = [
        handle,
        ctypes.c_char_p,
        size,
        ctypes.c_void_p,
        number,
        number,
    ]
    return library


def _is_equal(decoder: CropDecoder) -> bool:
    """Compare windows of a noisy image with those of the decoder that everything else uses."""
    noise = np.random.default_rng(0).integers(0, 256, (83, 70, 3), dtype=np.uint8)
    content = simplejpeg.encode_jpeg(noise, 95, "RGB", "444")
    whole = np.asarray(simplejpeg.decode_jpeg(content, "RGB"))
    for down, across in ((0.0, 0.0), (0.3, 0.5), (0.99, 0.99), (0.7, 0.1)):
        cut = decoder.decode(content, 70, 64, down, across)
        if cut is None or not np.array_equal(cut, window(whole, 64, down, across)):
            return False
    return True
