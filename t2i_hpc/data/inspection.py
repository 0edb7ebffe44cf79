"""Checks of splits that are there: is every byte right, and what do the samples look like?

Training checks sizes and the index alone, since it must start fast. Here everything is read
again, and what is wrong is named with its shard and member, all of it at once, so that a few
files can be copied again instead of a data set.

Captions that belong to other images, wrong crops and turned photographs are found by no check,
but seen at a glance in a contact sheet, or in the picture of a single sample.
"""

from __future__ import annotations

import json
import logging
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.files import sha256_of_file, write_bytes
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import (
    MANIFEST,
    REBUILD,
    ROW,
    VOCABULARY,
    Manifest,
    Shard,
    shard_name,
)
from t2i_hpc.data.format.tars import LARGEST_TEXT, index_tar, sample_names
from t2i_hpc.data.images import IMAGE_SUFFIXES, Pixels, decode, encode
from t2i_hpc.data.split import local_folder
from t2i_hpc.data.tar_reader import Reader, StoredSample

SAMPLES = 64  # of a contact sheet
_LISTED = 20  # problems
_COLUMNS = 8
_SIDE, _LINES, _LINE, _GAP = 160, 4, 14, 10
_PAPER, _INK, _FAINT = (255, 255, 255), (25, 28, 33), (110, 116, 125)
_TEXT_SIZE, _LETTERS = 11, 27  # letters that fit into the width of a picture
_LONGEST_NAME = 100  # letters
_OFFERED = 2  # keys in place of one that is misspelt
_CLOSE = 0.6  # of a key's letters
_LOG = logging.getLogger(__name__)


def splits_at(path: str, check_tars: bool = True) -> list[Manifest]:
    """Open a split, or all splits of a folder by name; `demo` is what ships with t2i_hpc.

    Args:
        path: folder.
        check_tars: refuse a split whose first missing or cut tar is found; without it
            :func:`verify_split` can name all of them.

    Raises:
        DataError: there is no split, or one of them is incomplete.
    """
    folder = local_folder(path)
    if not folder.is_dir():
        raise DataError(f"there is no folder {path}: name one made by t2i_hpc.shards")
    if (folder / MANIFEST).is_file():
        return [Manifest.load(folder, check_tars=check_tars)]
    found = sorted(place.parent for place in folder.glob(f"*/{MANIFEST}"))
    splits = [
        Manifest.load(place, check_tars=check_tars)
        for place in found
        if not place.name.startswith(".")
    ]
    if not splits:
        raise DataError(f"{folder} holds no split: build one with t2i_hpc.shards")
    return splits


def only_split(splits: Sequence[Manifest]) -> Manifest:
    """Return the one split that is meant.

    Raises:
        DataError: there are several.
    """
    if len(splits) > 1:
        names = ", ".join(manifest.folder.name for manifest in splits)
        raise DataError(
            f"{splits[0].folder.parent} holds the splits {names}: name one of them, "
            f"e.g. {splits[0].folder}"
        )
    return splits[0]


def verify_split(manifest: Manifest, advance: Callable[[int], None]) -> None:
    """Read a split again, all of it: hashes, index, every description and every image.

    Args:
        manifest: the split.
        advance: called after each sample.

    Raises:
        DataError: the one thing that is not as the manifest says, by shard and member; or the
            number of such things, of which the first 20 are logged as errors before.
    """
    found = list(islice(problems_of(manifest, advance), _LISTED + 1))
    if len(found) == 1:
        raise DataError(found[0])
    for problem in found[:_LISTED]:
        _LOG.error("%s", problem)
    if found:
        several = f"{len(found)} problems, listed above"
        many = f"more than {_LISTED} problems, the first {_LISTED} are listed above"
        raise DataError(
            f"{manifest.folder} has {several if len(found) <= _LISTED else many}; {REBUILD}"
        )


def problems_of(manifest: Manifest, advance: Callable[[int], None]) -> Iterator[str]:
    """Give all that is wrong with a split, a sentence each, while reading it once.

    A shard that cannot be indexed is one problem; else each of its samples may be one.
    """
    try:
        path = manifest.folder.parent / VOCABULARY
        manifest.check_vocabulary(Vocabulary.load(path).sha256, str(path))
    except DataError as error:
        yield str(error)
    seen = _Seen()
    reader, whole = Reader(manifest), True
    for shard in manifest.shards():
        for problem in _problems_of_shard(manifest, shard, reader, seen, advance):
            whole = False
            yield problem
    if whole and seen.smallest != manifest.smallest:
        yield (
            f"{manifest.folder / MANIFEST} calls {manifest.smallest} px the smallest side, but an "
            f"image has {seen.smallest} px; {REBUILD}"
        )


@dataclass
class _Seen:
    """The shortest side among the images that were read, in px."""

    smallest: int = 1 << 62


def _problems_of_shard(
    manifest: Manifest,
    shard: Shard,
    reader: Reader,
    seen: _Seen,
    advance: Callable[[int], None],
) -> Iterator[str]:
    """Give what is wrong with a shard; `seen` learns the size of each image."""
    path = manifest.folder / shard.name
    try:
        _check_index(manifest, shard)
    except DataError as error:
        yield str(error)
        advance(shard.count)
        return
    whole = True
    for number, name in enumerate(sample_names(path), int(manifest.first[shard.number])):
        try:
            image = _checked_image(reader, number, path, name)
            seen.smallest = min(seen.smallest, *image.shape[:2])
        except DataError as error:
            whole = False
            yield str(error)
        advance(1)
    if whole and sha256_of_file(path) != shard.sha256:
        yield (
            f"the content of {path} has changed (SHA-256 differs), though each of its samples "
            f"can be read; {REBUILD}"
        )


def _check_index(manifest: Manifest, shard: Shard) -> None:
    path = manifest.folder / shard.name
    found = index_tar(path)
    if len(found) != shard.count:
        raise DataError(f"{path} holds {len(found):,} samples, not {shard.count:,}; {REBUILD}")
    places = [name for name in ROW.names or () if name != "checksum"]  # bytes are read later
    other = found[places] != manifest.rows(shard.number)[places]
    if other.any():
        name = sample_names(path)[int(other.argmax())]
        raise DataError(f"{path} has its member {name!r} elsewhere than indexed; {REBUILD}")


def _checked_image(reader: Reader, number: int, path: Path, name: str) -> Pixels:
    try:
        return decode(reader.read(number).image, name)
    except DataError as error:
        raise DataError(f"{path} is damaged at its member {name!r}: {error}") from error


@dataclass(frozen=True)
class Place:
    """Where a sample is.

    Attributes:
        shard: path of its tar.
        offset: first byte of its image in the tar.
        sample: what is stored.
        image: uint8 (height, width, 3).
    """

    shard: Path
    offset: int
    sample: StoredSample
    image: Pixels


def place_of(manifest: Manifest, number: int) -> Place:
    """Read sample `number` and say where it is.

    Raises:
        DataError: there is no such sample, or it is damaged.
    """
    if not 0 <= number < manifest.sample_count:
        raise DataError(
            f"number={number} is not in {manifest.folder}: its samples are 0 to "
            f"{manifest.sample_count - 1}"
        )
    sample = Reader(manifest).read(number)
    path = manifest.folder / shard_name(manifest.shard_of(number))
    image = decode(sample.image, f"{sample.key} (sample {number} in {path})")
    return Place(path, int(manifest.index[number]["image_offset"]), sample, image)


def find_key(splits: Sequence[Manifest], key: str) -> tuple[Manifest, int]:
    """Return the first split and the number in it of the sample called `key`.

    Raises:
        DataError: no sample has that key; names the nearest.
    """
    first: list[str] = []
    close: list[tuple[int, str]] = []  # what a key shares with the one that is asked for
    for manifest in splits:
        for number, found in enumerate(_keys(manifest)):
            if found == key:
                return manifest, number
            if len(first) < _OFFERED:
                first.append(found)
            shared = _shared(key, found)
            if shared >= _CLOSE * max(len(key), len(found)):
                close = sorted([(-shared, found), *close])[:_OFFERED]
    hint = "did you mean" if close else "keys look like"
    names = " or ".join(repr(name) for name in [name for _, name in close] or first)
    folders = ", ".join(str(manifest.folder) for manifest in splits)
    raise DataError(f"no sample of {folders} has the key {key!r}: {hint} {names}?")


def _shared(one: str, other: str) -> int:
    """Return how many letters two names share at their beginnings and ends."""
    least = min(len(one), len(other))
    begin = next((n for n in range(least) if one[n] != other[n]), least)
    rest = least - begin
    return begin + next((n for n in range(rest) if one[-1 - n] != other[-1 - n]), rest)


def _keys(manifest: Manifest) -> Iterator[str]:
    """Give the keys in order; reads the descriptions alone, not the images."""
    for shard in manifest.shards():
        path = manifest.folder / shard.name
        try:
            with path.open("rb") as stream:
                for row in manifest.rows(shard.number):
                    yield _key(path, stream.fileno(), *row[["json_offset", "json_bytes"]].item())
        except OSError as error:
            raise DataError(f"cannot read {path} ({error.strerror}); {REBUILD}") from error


def _key(path: Path, descriptor: int, offset: int, count: int) -> str:
    try:
        text = os.pread(descriptor, min(count, LARGEST_TEXT), offset)
        return str(json.loads(text)["key"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path} has no readable description at byte {offset}; {REBUILD}"
        ) from error


def contact_sheet(manifest: Manifest) -> Image.Image:
    """Draw 64 samples (or all, if there are fewer), evenly spread over the split.

    Each picture is whole, scaled to fit 160 × 160 px; below it are the first caption and the
    sample's number and key.

    Raises:
        DataError: a sample is damaged.
    """
    shown = min(SAMPLES, manifest.sample_count)
    columns = min(_COLUMNS, shown)
    rows = -(-shown // columns)
    width, height = _SIDE + _GAP, _SIDE + (_LINES + 1) * _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    for place, (number, key, caption, image) in enumerate(_spread(manifest, shown)):
        row, column = divmod(place, columns)
        corner = (_GAP + column * width, _GAP + row * height)
        _draw(sheet, corner, image, caption, f"{number} {key}")
    return sheet


def _spread(manifest: Manifest, shown: int) -> Iterator[tuple[int, str, str, Pixels]]:
    reader = Reader(manifest)
    for place in range(shown):
        number = place * manifest.sample_count // shown
        sample = reader.read(number)
        image = decode(sample.image, f"{sample.key} ({reader.name_of(number)})")
        yield number, sample.key, sample.captions[0], image


def _draw(
    sheet: Image.Image, corner: tuple[int, int], image: Pixels, caption: str, name: str
) -> None:
    left, top = corner
    picture = Image.fromarray(image)
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    centered = (left + (_SIDE - size[0]) // 2, top + (_SIDE - size[1]) // 2)
    sheet.paste(picture.resize(size, Image.Resampling.BICUBIC), centered)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=_TEXT_SIZE)
    lines = textwrap.wrap(caption, _LETTERS, max_lines=_LINES, placeholder=" …")
    for number, line in enumerate(lines):
        draw.text((left, top + _SIDE + 2 + number * _LINE), line, _INK, font)
    label = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
    draw.text((left, top + _SIDE + 4 + _LINES * _LINE), label, _FAINT, font)


def picture_name(key: str) -> str:
    """Return a plain file name for the picture of a sample."""
    path = Path(re.sub(r"[^\w.-]+", "_", key))
    name = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    return f"{name[:_LONGEST_NAME]}.png"


def new_png(output: str) -> Path:
    """Return where a picture goes; nobody's picture is written over.

    Raises:
        ConfigurationError: it is no .png, or there already.
    """
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise ConfigurationError(f"output={output}: pictures are written as .png")
    if path.exists():
        raise ConfigurationError(f"{output} is there already: name another output=")
    return path


def write_png(path: Path, image: Pixels) -> None:
    """Write a picture, uint8 (height, width, 3).

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        write_bytes(path, encode(image, "png", 0))
    except OSError as error:
        raise ConfigurationError(f"cannot write output={path}: {error.strerror}") from error
