"""Reading pickles that hold data alone, without the machine that runs them as programs.

A pickle is a program for a small stack machine, one of whose words imports any function and
another calls it. This is that machine without these words: it builds lists, dicts, tuples,
strings, bytes and numbers, NumPy's whole numbers among them (published classes are such), and
everything else is refused by name: no name is ever looked up. Its memory is bounded by
the length of the file, since no word copies what is built: the standard machine, even with its
imports forbidden, can be told to reserve a table of gigabytes by a file of ten bytes, or to
crash by hashing a deeply nested key.
"""

from __future__ import annotations

import codecs
import io
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from t2i_hpc.common.errors import DataError

LARGEST = 2 << 30  # bytes of a file
_KEYS = (str, bytes, int, float, bool, type(None))
_MARK = object()
_LONGEST_NUMBER = 8  # bytes
_CHANCE = 8  # line feeds that may all happen to stand behind carriage returns
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
        return _Machine().run(_with_line_feeds(path.read_bytes()))
    except OSError as error:
        raise DataError(f"cannot read {path}, {holds}: {error.strerror}") from error
    except Exception as error:  # damaged pickles fail in any of the words
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path}, {holds}, cannot be read as a pickle of lists, dicts, strings and numbers "
            f"({reason}): fetch the file again"
        ) from error


def _with_line_feeds(content: bytes) -> bytes:
    """Undo what git and mail clients do to the line ends of a text pickle (protocol 0).

    Such a pickle holds no carriage return of its own: those of strings are written as letters.

    Raises:
        ValueError: a binary pickle was changed so, which cannot be undone.
    """
    ends = content.count(b"\n")
    if not ends or content.count(b"\r\n") != ends:
        return content
    if not content.startswith(b"\x80"):
        return content.replace(b"\r\n", b"\n")
    if ends > _CHANCE:
        raise ValueError("its line ends were changed to CR LF, as git does on Windows")
    return content


@dataclass
class _Name:
    """The name of a function that is not called, but whose result is known."""

    name: str


@dataclass
class _Type:
    """A type of NumPy's numbers: bytes, whether it has a sign, byte order."""

    size: int
    signed: bool
    order: Literal["little", "big"] = "little"


def _named(module: Any, name: Any) -> _Name:
    if (module, name) not in _KNOWN:
        raise ValueError(f"the name {module}.{name} is not allowed"[:200])
    return _Name(_KNOWN[module, name])


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise TypeError("a call of what is no function")
    if function.name == "dtype":
        return _type(arguments[0])
    if function.name == "encode":
        text, encoding = arguments
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise TypeError("an encoding that is not known")
        if len(text) > _LONGEST_NUMBER:  # many copies of a long text would take any memory
            raise TypeError("bytes that are no number of NumPy's")
        return text.encode("latin-1")
    kind, content = arguments
    content = content.encode("latin-1") if isinstance(content, str) else content
    if not isinstance(kind, _Type) or not isinstance(content, bytes) or len(content) != kind.size:
        raise TypeError("a number of NumPy's that is damaged")
    return int.from_bytes(content, kind.order, signed=kind.signed)


def _type(code: Any) -> _Type:
    text = code.decode("latin-1") if isinstance(code, bytes) else code
    if not isinstance(text, str) or not re.fullmatch("[iu][1248]", text):
        raise TypeError(f"the type {text!r} of NumPy's numbers is not allowed"[:200])
    return _Type(int(text[1]), text[0] == "i")


def _built(target: Any, state: Any) -> Any:
    """Give a type its byte order, the second item of what NumPy stores of it."""
    if not isinstance(target, _Type) or not isinstance(state, tuple) or len(state) < 2:
        raise TypeError("a state of what has none")
    mark = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
    if mark not in ("<", ">", "|", "="):
        raise TypeError("a byte order that is not known")
    target.order = "big" if mark == ">" else "little"  # in place: the pickle shares it
    return target


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

    def name(self, argument: str) -> None:
        self._stack.append(_named(*argument.split(" ")))

    def name_of_stack(self, _: Any) -> None:
        self._stack.append(_named(*self.take(2)))

    def call(self, _: Any) -> None:
        self._stack.append(_called(*self.take(2)))

    def build(self, _: Any) -> None:
        self._stack.append(_built(*self.take(2)))

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
_KNOWN = {
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}
_WORDS: dict[str, Callable[[_Machine, Any], Any]] = {
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
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
