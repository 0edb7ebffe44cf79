"""Splits that are there: which there are, and what their samples look like.

Captions that belong to other images, wrong crops and turned photographs are found by no check,
but seen at a glance in a contact sheet, or in the picture of a single sample.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.files import write_bytes
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import MANIFEST, VOCABULARY, Manifest
from t2i_hpc.data.format.tables import REBUILD
from t2i_hpc.data.format.tars import LARGEST_TEXT
from t2i_hpc.data.images import IMAGE_SUFFIXES, Pixels, decode, encode
from t2i_hpc.data.split import Split, local_folder, open_storage, open_vocabulary
from t2i_hpc.data.storage.fetching import Server, is_remote, join
from t2i_hpc.data.storage.retry import shown
from t2i_hpc.data.tar_reader import Reader, StoredSample

SAMPLES = 64  # of a contact sheet
_RETRY_SECONDS = 10.0
_COLUMNS = 8
_SIDE, _LINES, _LINE, _GAP = 160, 4, 14, 10
_PAPER, _INK, _FAINT = (255, 255, 255), (25, 28, 33), (110, 116, 125)
_TEXT_SIZE, _LETTERS = 11, 27  # letters that fit into the width of a picture
_LONGEST_NAME = 100  # letters
_OFFERED = 2  # keys in place of one that is misspelt
_CLOSE = 0.6  # of a key's letters


def splits_at(path: str, check_tars: bool = True) -> list[Manifest]:
    """Open a split, or all splits of a folder by name; `demo` is what ships with t2i_hpc.

    Args:
        path: folder.
        check_tars: refuse a split whose first missing or cut tar is found; without it
            :func:`t2i_hpc.data.verification.verify_split` can name all of them.

    Raises:
        DataError: there is no split, or one of them is incomplete.
    """
    if is_remote(path, "DIR"):
        return _splits_on_server(path)
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


def _splits_on_server(address: str) -> list[Manifest]:
    """Open the split at an address, or those that a folder of splits usually has."""
    server = Server(_RETRY_SECONDS)
    parent, _, name = address.rstrip("/").rpartition("/")
    found, first = list[Manifest](), None
    for folder, split in ((parent, name), (address, "train"), (address, "test")):
        try:
            server.json(join(folder, split, MANIFEST))
        except DataError as error:
            first = first or error
            continue
        found.append(Split.open(DataConfig(path=folder), split).manifest)
        if folder == parent:
            break
    if not found:
        raise DataError(f"{shown(address)} has no split, nor train or test in it: {first}")
    return found


def reader_of(manifest: Manifest) -> Reader:
    """Return what reads the samples of a split one by one, here or on a server."""
    ranged = DataConfig(remote_reads="ranges", retry_seconds=_RETRY_SECONDS)
    return Reader(manifest, open_storage(manifest, ranged))


def vocabulary_of(manifest: Manifest) -> Vocabulary:
    """Return the vocabulary beside a split, here or on a server.

    Raises:
        DataError: it cannot be had.
    """
    if not manifest.location:
        return Vocabulary.load(manifest.folder.parent / VOCABULARY)
    return open_vocabulary(DataConfig(path=manifest.location.rpartition("/")[0]))


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


@dataclass(frozen=True)
class Place:
    """Where a sample is.

    Attributes:
        shard: path of its tar.
        name: that, or the address of a tar on a server.
        offset: first byte of its image in the tar.
        sample: what is stored.
        image: uint8 (height, width, 3).
    """

    shard: Path
    name: str
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
    reader = reader_of(manifest)
    sample = reader.read(number)
    image = sample.upright(decode(sample.image, f"{sample.key} ({reader.name_of(number)})"))
    name = reader.name_of(number).partition(" in ")[2]
    return Place(
        Path(manifest.tar(manifest.shard_of(number))),
        name,
        int(manifest.index[number]["image_offset"]),
        sample,
        image,
    )


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
        if manifest.in_place:
            for begin, count in manifest.rows(shard.number)[["json_offset", "json_bytes"]].tolist():
                yield _key_in(
                    manifest.descriptions[begin : begin + count].tobytes(), manifest.folder, begin
                )
            continue
        path = manifest.folder / shard.name
        try:
            with path.open("rb") as stream:
                for row in manifest.rows(shard.number):
                    yield _key(path, stream.fileno(), *row[["json_offset", "json_bytes"]].item())
        except OSError as error:
            raise DataError(f"cannot read {path} ({error.strerror}); {REBUILD}") from error


def _key(path: Path, descriptor: int, offset: int, count: int) -> str:
    return _key_in(os.pread(descriptor, min(count, LARGEST_TEXT), offset), path, offset)


def _key_in(text: bytes, path: Path, offset: int) -> str:
    try:
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
    count = min(SAMPLES, manifest.sample_count)
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    width, height = _SIDE + _GAP, _SIDE + (_LINES + 1) * _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    for place, (number, key, caption, image) in enumerate(_spread(manifest, count)):
        row, column = divmod(place, columns)
        corner = (_GAP + column * width, _GAP + row * height)
        _draw(sheet, corner, image, caption, f"{number} {key}")
    return sheet


def _spread(manifest: Manifest, count: int) -> Iterator[tuple[int, str, str, Pixels]]:
    reader = reader_of(manifest)
    for place in range(count):
        number = place * manifest.sample_count // count
        sample = reader.read(number)
        image = sample.upright(decode(sample.image, f"{sample.key} ({reader.name_of(number)})"))
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
