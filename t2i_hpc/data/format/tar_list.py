"""Where the tars of an index in place are: a line of JSON each, read when its tar is wanted."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.lazy_sequence import LazySequence

_EVERY = 64  # lines between two whose place is kept
_MOST_KEPT = 4096  # tars


class TarList(LazySequence[str]):
    """Paths or addresses of tars, from a file with ``{"tar": path or address, …}`` a line.

    A process uses few of them, so the places of some lines are kept instead of a string a tar.

    Raises:
        DataError: the file is missing, or has not `count` lines; a line cannot be read.
    """

    def __init__(self, path: Path, count: int, remedy: str) -> None:
        self._path, self._count, self._remedy = path, count, remedy
        self._begins, self._kept = array("q"), dict[int, str]()
        found = place = 0
        try:
            with path.open("rb") as stream:
                for line in stream:
                    if line.strip():
                        if found % _EVERY == 0:
                            self._begins.append(place)
                        found += 1
                    place += len(line)
        except OSError as error:
            raise self._unreadable(error) from error
        if found != count:
            raise DataError(f"{path} has not one line for each of {count:,} tars")

    def __len__(self) -> int:
        return self._count

    def at(self, number: int) -> str:
        """Return a path or an address."""
        if number not in self._kept:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[number] = self._read(number)
        return self._kept[number]

    def __iter__(self) -> Iterator[str]:
        try:
            with self._path.open("rb") as stream:
                yield from map(self._parsed, _not_empty(stream))
        except OSError as error:
            raise self._unreadable(error) from error

    def _read(self, number: int) -> str:
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._begins[number // _EVERY])
                lines = _not_empty(stream)
                for _ in range(number % _EVERY):
                    next(lines)
                return self._parsed(next(lines))
        except (OSError, StopIteration) as error:
            raise self._unreadable(error) from error

    def _parsed(self, line: bytes) -> str:
        try:
            return str(json.loads(line)["tar"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self._path} cannot be read ({error}); {self._remedy}")


def _not_empty(lines: Iterable[bytes]) -> Iterator[bytes]:
    return (line for line in lines if line.strip())
