"""Reading pickles that hold data alone, without the machine that runs them as programs.

A pickle is a program for a small stack machine, one of whose words imports any function and
another calls it. This is that machine without these words: it builds lists, dicts, tuples,
strings, bytes and numbers, and everything else is refused by name. Its memory is bounded by
the length of the file, since no word copies what is built: the standard machine, even with its
imports forbidden, can be told to reserve a table of gigabytes by a file of ten bytes, or to
crash by hashing a deeply nested key.
"""

from __future__ import annotations

import codecs
import io
import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import DataError

LARGEST = 2 << 30  # bytes of a file
_KEYS = (str, bytes, int, float, bool, type(None))
_MARK = object()
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


def load_data(path: Path, holds: str) -> object:
    """Return what a pickle of any protocol holds; strings of Python 2 are read as latin-1.

    Objects may be shared or contain themselves, so look at no more of them than is expected.

    Args:
        path: the file.
        holds: what it should be, for messages.

    Raises:
        DataError: missing, too large, damaged, or a pickle of more than data.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise DataError(
                f"{path}, {holds}, has {size:,} bytes, more than the {LARGEST:,} that are read: "
                "fetch the file again"
            )
        return _Machine().run(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}, {holds}: {error.strerror}") from error
    except Exception as error:  # damaged pickles fail in any of the words
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path}, {holds}, cannot be read as a pickle of lists, dicts, strings and numbers "
            f"({reason}): fetch the file again"
        ) from error


class _Machine:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> object:
        for word, argument in _words(io.BytesIO(content)):
            if word in _PUSH:
                self._stack.append(argument)
            elif word in _WORDS:
                _WORDS[word](self, argument)
            else:
                raise ValueError(f"the word {word} is not allowed")
        (result,) = self._stack
        return result

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def remember_next(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def recall(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def pop(self, _: Any) -> None:
        self._stack.pop()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def to_mark(self, _: Any = None) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("there is no mark")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def take(self, count: int) -> list[Any]:
        """Take the last few items, none of which may be a mark."""
        if len(self._stack) < count:
            raise ValueError("the stack is empty")
        items = self._stack[-count:]
        if any(item is _MARK for item in items):
            raise ValueError("a mark stands where an object should")
        del self._stack[-count:]
        return items

    def append(self, items: list[Any]) -> None:
        self._on_top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        self._on_top(dict).update(_dict(items))

    def _on_top(self, kind: type[Any]) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise TypeError(f"a {type(self._stack[-1]).__name__} instead of a {kind.__name__}")
        return self._stack[-1]


def _words(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """Give the words of a pickle with their arguments, up to its end."""
    while True:
        word = _OPCODES[stream.read(1).decode("latin-1")]
        if word.name == "STOP":
            return
        if word.name == "STRING":  # Python 2's, which the standard reader takes for ASCII
            quoted = pickletools.read_stringnl(stream, decode=False)
            yield "STRING", codecs.escape_decode(quoted)[0].decode("latin-1")
        else:
            yield word.name, word.arg.reader(stream) if word.arg else None


def _dict(items: list[Any]) -> dict[Any, Any]:
    keys, values = items[::2], items[1::2]
    if not all(isinstance(key, _KEYS) for key in keys):
        raise TypeError("a key that is no string or number")
    return dict(zip(keys, values, strict=True))


_PUSH = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
})  # fmt: skip
_WORDS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.push(_MARK),
    "POP": _Machine.pop,
    "POP_MARK": _Machine.to_mark,
    "DUP": _Machine.duplicate,
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember_next,
    "GET": _Machine.recall,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.to_mark()),
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.to_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.push(_dict(machine.to_mark())),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
}
