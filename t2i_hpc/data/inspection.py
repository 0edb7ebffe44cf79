"""Looking at splits that are there: is every byte right, and what do the samples look like?

Training checks sizes and the index alone, since it must start fast. Here everything is read
again: what is wrong is named with its shard and member, so that one file can be copied again
instead of a data set.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.common.resources import resource
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.images import Pixels, decode
from t2i_hpc.data.manifest import MANIFEST, REBUILD, ROW, VOCABULARY, Manifest, Shard, shard_name
from t2i_hpc.data.reader import Reader, StoredSample
from t2i_hpc.data.tars import index_tar, sample_names

DEMO = "demo"


def splits_at(path: str) -> list[Manifest]:
    """Open a split, or all splits of a folder by name; `demo` is what ships with t2i_hpc.

    Raises:
        DataError: there is no split, or one of them is incomplete.
    """
    folder = resource("shards_demo") if path == DEMO else Path(path)
    if not folder.is_dir():
        raise DataError(f"there is no folder {path}: name one made by t2i_hpc.shards")
    if (folder / MANIFEST).is_file():
        return [Manifest.load(folder)]
    found = sorted(place.parent for place in folder.glob(f"*/{MANIFEST}"))
    splits = [Manifest.load(place) for place in found if not place.name.startswith(".")]
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
        manifest: the split; its index was compared with its hash on opening.
        advance: told after each sample.

    Raises:
        DataError: the first thing that is not as the manifest says, by shard and member.
    """
    Vocabulary.load(manifest.folder.parent / VOCABULARY)
    reader, first, sides = Reader(manifest), 0, []
    for shard in manifest.shards():
        path = manifest.folder / shard.name
        _check_index(manifest, shard)
        for number, name in enumerate(sample_names(path), first):
            sides.append(min(_checked_image(reader, number, path, name).shape[:2]))
            advance(1)
        if sha256_of_file(path) != shard.sha256:
            raise DataError(
                f"the content of {path} has changed (SHA-256 differs), though each of its samples "
                f"can be read; {REBUILD}"
            )
        first += shard.count
    if min(sides) != manifest.smallest:
        raise DataError(
            f"{manifest.folder / MANIFEST} calls {manifest.smallest} px the smallest side, but an "
            f"image has {min(sides)} px; {REBUILD}"
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
    """Where a sample lies.

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
    """Read sample `number` and say where it lies.

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
    keys: list[str] = []
    for manifest in splits:
        for number, found in enumerate(_keys(manifest)):
            if found == key:
                return manifest, number
            keys.append(found)
    close = difflib.get_close_matches(key, keys)
    hint = "did you mean" if close else "keys look like"
    names = " or ".join(repr(name) for name in close or keys[:2])
    folders = ", ".join(str(manifest.folder) for manifest in splits)
    raise DataError(f"no sample of {folders} has the key {key!r}: {hint} {names}?")


def _keys(manifest: Manifest) -> Iterator[str]:
    """Give the keys in order; reads the descriptions alone, not the images."""
    index, first = manifest.index, 0
    for shard in manifest.shards():
        path = manifest.folder / shard.name
        with path.open("rb") as stream:
            for row in index[first : first + shard.count]:
                count, offset = int(row["json_bytes"]), int(row["json_offset"])
                try:
                    yield str(json.loads(os.pread(stream.fileno(), count, offset))["key"])
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise DataError(
                        f"{path} has no readable description at byte {offset}; {REBUILD}"
                    ) from error
        first += shard.count
