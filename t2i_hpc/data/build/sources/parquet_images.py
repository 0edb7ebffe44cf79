"""Parquet files that hold the images themselves, as Hugging Face and img2dataset write them.

One column holds image files: bytes, or Hugging Face's ``{bytes, path}``. The others hold captions,
a class, and what is kept as the source's own words. Rows are counted by the footers of the files
and read when their shard is made, in the order of the files' paths: no partition of a build reads
others' rows, and in memory are a few rows of one file.

Rows without an image whose ``status`` tells of a failed download, which img2dataset keeps, are
left out and counted; others without one are rejected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.captions_files import ALL
from t2i_hpc.data.build.sources.captions_tables import PARQUET_EXTRA
from t2i_hpc.data.build.sources.sample import (
    NOT_DOWNLOADED,
    AddressedSamples,
    SourceData,
    SourceSample,
    StoredSource,
    Unfit,
    class_of,
)
from t2i_hpc.data.sidecars import (
    CAPTION_KEYS,
    NAMES,
    NO_CAPTION,
    NO_IMAGE,
    captions_in,
    files_below,
    orientation_in,
    source_in,
)

_USUAL = ("image", "jpg", "jpeg", "png", "webp", "img")
_TEXT = "txt"  # img2dataset's second name of a caption
_BATCH = 32  # rows in memory
_BUFFER = 1 << 20  # bytes read at once from a column
_SPLIT = re.compile(r"([A-Za-z0-9_.]+?)-\d+-of-\d+")  # train-00000-of-00042
_FOLDERS = ("train", "test", "validation", "valid", "val", "dev")


@dataclass(frozen=True)
class _Columns:
    """Which columns are read.

    Attributes:
        image: that of the images.
        nested: whether it is Hugging Face's ``{bytes, path}``.
        others: those of texts, numbers and lists of texts.
        caption: name of the captions; empty: one of the usual names.
    """

    image: str
    nested: bool
    others: tuple[str, ...]
    caption: str

    @property
    def texts(self) -> list[str]:
        """Return the columns in which captions may be."""
        named = {self.caption.lower()} if self.caption else {*CAPTION_KEYS, _TEXT}
        return [name for name in self.others if name.lower() in named]

    def captions(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the captions of a row."""
        found = captions_in(row, self.caption)
        return found if found or self.caption else captions_in({"text": row.get(_TEXT)})


def read_parquet(config: ShardsConfig) -> SourceData:
    """Open the parquet files of a folder, or one file.

    Raises:
        DataError: there are none, they cannot be read, or have no column of images.
        ConfigurationError: pyarrow is not installed, or more than one column holds images.
    """
    if config.captions:
        raise DataError("captions= does not belong to source=parquet: captions are in its columns")
    wanted = "name a folder of .parquet files, or one of them"
    if not config.images:
        raise DataError(f"images= is missing: {wanted}")
    root = Path(config.images)
    if not root.exists():
        raise DataError(f"there is no folder {root}: images= must {wanted}")
    found = [root] if root.is_file() else files_below(root)
    paths = _of_split([path for path in found if path.suffix == ".parquet"], root, config.split)
    if not paths:
        raise DataError(f"{root} has no .parquet files: name the folder that holds them")
    columns = _columns(_opened(paths[0]).schema_arrow, paths[0], config)
    folder = root if root.is_dir() else root.parent
    return SourceData(ParquetSamples(folder, paths, columns, config.filter))


def captions_of_parquet(path: Path) -> Iterator[str]:
    """Give the captions of a parquet file, whatever else it holds."""
    columns = _Columns("", False, tuple(_opened(path).schema_arrow.names), "")
    yield from _captions(path, columns)


class ParquetSamples(AddressedSamples):
    """The rows of parquet files.

    Args:
        folder: that of all files.
        paths: the files, in order.
        columns: which of their columns are read.
        filter: what is asked of samples when they are made, for their identity.
    """

    def __init__(
        self, folder: Path, paths: Sequence[Path], columns: _Columns, filter: str = ""
    ) -> None:
        self._folder, self._paths, self._columns, self._filter = folder, paths, columns, filter
        counts = [_opened(path).metadata.num_rows for path in paths]
        self._ends = np.cumsum(np.array(counts, dtype=np.int64))
        super().__init__(int(self._ends[-1]))
        self._rows = _Rows(columns)
        self.said = frozenset(columns.others)

    def sample(self, number: int) -> SourceSample:
        """Return the sample of a row."""
        file = int(np.searchsorted(self._ends, number, side="right"))
        path, place = self._paths[file], number - self._first(file)
        row, columns = self._rows.row(path, place), self._columns
        name = path.relative_to(self._folder).with_suffix("").as_posix()
        content, captions = _image(row, columns), columns.captions(row)
        unfit = None
        where = f"row {place + 1:,} of {path}"
        if content is None and row.get("status") not in (None, "", "success"):
            unfit = Unfit(NOT_DOWNLOADED, f"{where} has the status {row['status']}")
        elif content is None:
            unfit = Unfit(NO_IMAGE, f"{where} has no bytes in its column {columns.image}")
        elif not captions:
            unfit = Unfit(NO_CAPTION, f"{where} has no column {columns.caption or NAMES}")
        return StoredSource(
            f"{name}/{place:06d}",
            path,
            captions,
            class_of(row.get("class"), number),
            orientation=orientation_in(row),
            unfit=unfit,
            source=source_in(row, (_TEXT, columns.caption.lower())) or None,
            content=content or b"",
        )

    def texts(self, numbers: range) -> Iterator[str]:
        """Give the captions of some rows, by their columns alone."""
        for file, path in enumerate(self._paths):
            begin, end = self._first(file), int(self._ends[file])
            own = range(max(numbers.start, begin) - begin, min(numbers.stop, end) - begin)
            if own:
                yield from _captions(path, self._columns, own)

    def identity(self, numbers: range) -> list[object]:
        """Return what some samples follow from: places and states of their files."""
        first, last = np.searchsorted(self._ends, (numbers.start, numbers.stop - 1), side="right")
        found: list[object] = [repr(self._columns), self._filter]
        for file in range(int(first), int(last) + 1):
            state = self._paths[file].stat()
            begin = self._first(file)
            name = self._paths[file].relative_to(self._folder).as_posix()
            found.append([name, state.st_size, state.st_mtime_ns, numbers.start - begin])
        return found

    def _first(self, file: int) -> int:
        return int(self._ends[file - 1]) if file else 0


class _Rows:
    """Reads rows one after the other, a few at a time; each process opens files itself."""

    def __init__(self, columns: _Columns) -> None:
        self._wanted = [columns.image, *columns.others]
        self._at: tuple[int, Path] | None = None  # process and file
        self._batches: Iterator[Any] = iter(())  # of a group of rows
        self._batch: Any = ()
        self._begin = self._end = 0  # of the batch, of the group

    def row(self, path: Path, number: int) -> dict[str, Any]:
        """Return a row by its number in a file.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            if self._at != (os.getpid(), path) or not self._begin <= number < self._end:
                self._open(path, number)
            while number >= self._begin + len(self._batch):
                self._begin += len(self._batch)
                self._batch = next(self._batches)
            held = self._batch.slice(number - self._begin, 1).to_pylist()
        except Exception as error:  # pyarrow raises anything on damaged files
            raise _unreadable(path, error) from error
        return dict(held[0])

    def _open(self, path: Path, number: int) -> None:
        """Begin at the group of rows that holds a row."""
        file = _opened(path)
        group = begin = 0
        while number >= begin + (count := file.metadata.row_group(group).num_rows):
            group, begin = group + 1, begin + count
        self._at, self._begin, self._end = (os.getpid(), path), begin, begin + count
        # No threads: workers are forked.
        self._batches = file.iter_batches(_BATCH, [group], self._wanted, use_threads=False)
        self._batch = ()


def _opened(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigurationError(
            f"{path} is a parquet file, which needs an extra: {PARQUET_EXTRA}"
        ) from error
    try:
        return parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except Exception as error:  # pyarrow raises anything on damaged files
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not readable as parquet ({error}): fetch it again")


def _of_split(paths: Sequence[Path], root: Path, split: str) -> list[Path]:
    """Return the files of a split, where all of them name one: ``train-00000-of-00042.parquet``.

    Raises:
        DataError: they name others.
    """
    names = [_split_of(path, root) for path in paths]
    if not names or not all(names) or split == ALL:
        return list(paths)
    found = [path for path, name in zip(paths, names, strict=True) if name == split]
    if not found:
        raise DataError(
            f"{root} has the splits {', '.join(sorted({*names}))}: split={split} is none of "
            f"them; split={ALL} takes all images"
        )
    return found


def _split_of(path: Path, root: Path) -> str:
    if match := _SPLIT.match(path.name):
        return match[1]
    folder = path.parent.name
    return folder if path.parent != root and folder in _FOLDERS else ""


def _columns(schema: Any, path: Path, config: ShardsConfig) -> _Columns:
    """Choose the columns of a file.

    Raises:
        DataError: none holds images.
        ConfigurationError: ``image_key=`` names none of those that do, or has to.
    """
    kinds = {field.name: _kind(field.type) for field in schema}
    images = [name for name, kind in kinds.items() if kind in ("bytes", "nested")]
    others = tuple(name for name, kind in kinds.items() if kind == "other")
    chosen = [name for name in images if name == config.image_key] if config.image_key else images
    if len(chosen) > 1:
        chosen = [name for name in images if name.lower() in _USUAL]
    if not images:
        raise DataError(
            f"{path} holds no images, but the columns {', '.join(kinds)[:200]}: file names belong "
            "to source=folder captions=FILE, and addresses have to be fetched first (img2dataset)"
        )
    if len(chosen) != 1:
        raise ConfigurationError(
            f"{path} holds bytes in the columns {', '.join(images)}: name that of the images with "
            "image_key="
        )
    return _Columns(chosen[0], kinds[chosen[0]] == "nested", others, config.caption_key)


def _kind(found: Any) -> str:
    """Return what a column may be: bytes or nested (images), other, or "" for what is not read."""
    from pyarrow import types

    def binary(one: Any) -> bool:
        return bool(types.is_binary(one) or types.is_large_binary(one))

    if binary(found):
        return "bytes"
    if types.is_struct(found):
        return "nested" if any(one.name == "bytes" and binary(one.type) for one in found) else ""
    if types.is_list(found) or types.is_large_list(found):  # of numbers: embeddings
        inner = found.value_type
        texts = types.is_string(inner) or types.is_large_string(inner) or types.is_struct(inner)
        return "other" if texts else ""
    return "" if types.is_nested(found) else "other"


def _image(row: Mapping[str, Any], columns: _Columns) -> bytes | None:
    value = row.get(columns.image)
    if columns.nested and isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) and value else None


def _captions(path: Path, columns: _Columns, rows: range | None = None) -> Iterator[str]:
    """Give the captions of some rows of a file; None: of all."""
    if not columns.texts:
        return
    file, begin = _opened(path), 0
    rows = range(file.metadata.num_rows) if rows is None else rows
    try:
        for group in range(file.metadata.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            own = range(max(rows.start, begin) - begin, min(rows.stop, end) - begin)
            if own:
                yield from _captions_of_group(file, group, own, columns)
            begin = end
    except Exception as error:  # pyarrow raises anything on damaged files
        raise _unreadable(path, error) from error


def _captions_of_group(file: Any, group: int, rows: range, columns: _Columns) -> Iterator[str]:
    begin = 0
    for batch in file.iter_batches(4096, [group], columns.texts, use_threads=False):
        first, last = max(rows.start - begin, 0), min(rows.stop - begin, len(batch))
        for row in batch.slice(first, max(last - first, 0)).to_pylist():
            yield from columns.captions(row)
        begin += len(batch)
        if begin >= rows.stop:
            return
