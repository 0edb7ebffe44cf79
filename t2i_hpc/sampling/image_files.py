"""Generated images on the disk, for those who ask for them; scores never need them.

Beside them ``index.jsonl`` says of each number which sample and caption it was made of, with
which seed and checkpoint. Whoever computes an evaluation shard writes its images and rows; the
rows of all shards become one file when the score is made.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from t2i_hpc.common.files import read_json_lines, write_text

ImagesOf = Callable[[range], Tensor]
"""Gives images by number, uint8 (B, 3, R, R)."""


INDEX = "index.jsonl"
Images = npt.NDArray[np.uint8]
_WRITERS = 4  # threads that compress: zlib releases the interpreter's lock
_PNG_LEVEL = 1  # of zlib's 9; Pillow's own 6 takes twice as long and saves a tenth


@dataclass(frozen=True)
class SavedImages:
    """The image files of one checkpoint and protocol.

    Attributes:
        folder: where they are.
        form: png (one file an image, by its number) or npz (one a batch, by its first number).
        images: number of images that count.
        batch_size: images of a batch.
        describe: says what an image was made of, for the index.
    """

    folder: Path
    form: str
    images: int
    batch_size: int
    describe: Callable[[int], Mapping[str, Any]]

    def writing(self, images_of: ImagesOf) -> ImagesOf:
        """Return `images_of` such that it also writes the images that count."""

        def give_and_write(numbers: range) -> Tensor:
            images = images_of(numbers)
            counted = images[: max(0, self.images - numbers.start)].cpu().numpy()
            self._write(numbers, counted.transpose(0, 2, 3, 1))
            return images

        return give_and_write

    def has(self, numbers: range) -> bool:
        """Whether the images of a shard, which begins with a batch, and their rows are there."""
        rows = (self.folder / INDEX).exists() or self._rows_of(numbers).exists()
        return rows and all((self.folder / name).exists() for name in self._names(numbers))

    def finish(self, numbers: range) -> None:
        """Write the rows of a shard whose images are there."""
        rows = ({"number": n, "file": self._name_of(n), **self.describe(n)} for n in numbers)
        _write_rows(self._rows_of(numbers), rows)

    def gather(self) -> None:
        """Make one index of the rows of all shards, once they are there."""
        shards = sorted(self.folder.glob("rows-*.jsonl"))
        rows = {row["number"]: row for path in shards for row in read_json_lines(path)}
        if sorted(rows) != list(range(self.images)):
            return
        _write_rows(self.folder / INDEX, (rows[number] for number in range(self.images)))
        for path in shards:
            path.unlink(missing_ok=True)

    def _write(self, numbers: range, images: Images) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.form == "npz":
            stream = io.BytesIO()
            np.savez_compressed(stream, images=images)
            replace_file(self.folder / self._name_of(numbers.start), stream.getvalue())
            return
        files = (self.folder / self._name_of(number) for number in numbers)
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="png") as pool:
            list(pool.map(_write_png, files, images))  # so that an error is raised here

    def _names(self, numbers: range) -> list[str]:
        return list(dict.fromkeys(map(self._name_of, numbers)))

    def _name_of(self, number: int) -> str:
        if self.form == "npz":
            number -= number % self.batch_size
        return f"{number:09d}.{self.form}"

    def _rows_of(self, numbers: range) -> Path:
        return self.folder / f"rows-{numbers.start:09d}-{numbers.stop:09d}.jsonl"


def png_bytes(image: Images) -> bytes:
    """Return uint8 (H, W, 3) as a PNG file, compressed quickly."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png", compress_level=_PNG_LEVEL)
    return stream.getvalue()


def _write_png(path: Path, image: Images) -> None:
    replace_file(path, png_bytes(image))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there; without a flush, for it can be made again."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_rows(path: Path, rows: Any) -> None:
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, "".join(lines))
