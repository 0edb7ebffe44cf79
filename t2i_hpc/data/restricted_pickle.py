"""Reads pickles that hold data alone: lists, dicts, tuples, strings, bytes and numbers.

A pickle is a program, and two of its opcodes import and call any function. This is the standard
library's Unpickler in Python, with an allow list of opcodes and four names of which NumPy's whole
numbers are made (published classes are such); nothing is ever imported.

Why not the Unpickler in C: ten bytes can tell it to reserve a memo of gigabytes, and a deeply
nested dict key crashes it. In Python the memo is a dict, lengths are not believed before the bytes
are read, and keys are checked here: memory and time grow with the length of the file alone.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from t2i_hpc.common.errors import DataError

LARGEST = 2 << 30  # bytes of a file
_KEYS = frozenset({str, bytes, int, float, bool, type(None)})
_CHANCE = 8  # line feeds that may all happen to stand behind carriage returns
_ALLOWED = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "NONE", "NEWTRUE", "NEWFALSE", "FLOAT", "BINFLOAT",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
})  # fmt: skip


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
        content = io.BytesIO(_with_line_feeds(path.read_bytes()))
        return _DataUnpickler(content, encoding="latin-1").load()
    except OSError as error:
        raise DataError(f"cannot read {path}, {holds}: {error.strerror}") from error
    except Exception as error:  # a damaged pickle fails in any opcode
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path}, {holds}, cannot be read as a pickle of lists, dicts, strings and numbers "
            f"({reason}): fetch the file again"
        ) from error


def _with_line_feeds(content: bytes) -> bytes:
    """Undo what git and mail clients do to the line ends of a text pickle (protocol 0).

    Such a pickle holds no carriage return of its own: those of strings are escaped.

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


class _DataUnpickler(pickle._Unpickler):
    stack: list[Any]  # since the last mark
    metastack: list[list[Any]]  # before each mark

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _CALLABLES:
            raise ValueError(f"the name {module}.{name} is not allowed")
        return _CALLABLES[module, name]


def _are_keys(values: list[Any]) -> bool:
    """Admit no tuples: to hash a deep one crashes, to hash a shared one may take for ever."""
    return all(type(value) in _KEYS for value in values)


_CHECKS: dict[str, Callable[[_DataUnpickler], bool]] = {
    "SETITEM": lambda self: _are_keys(self.stack[-2:-1]),
    "SETITEMS": lambda self: _are_keys(self.stack[::2]),
    "DICT": lambda self: _are_keys(self.stack[::2]),
    "BUILD": lambda self: isinstance(self.stack[-2], _WholeNumber),
    "STOP": lambda self: not self.metastack and len(self.stack) == 1,
}
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


def _handler(code: int) -> Callable[[Any], None]:
    name = _NAMES.get(code, hex(code))
    run: Callable[[Any], None] | None = pickle._Unpickler.dispatch.get(code)

    def checked(unpickler: _DataUnpickler) -> None:
        if run is None or name not in _ALLOWED or not _CHECKS[name](unpickler):
            raise ValueError(f"the opcode {name} is not allowed here")
        run(unpickler)

    return run if run and name in _ALLOWED - _CHECKS.keys() else checked


_DataUnpickler.dispatch = {code: _handler(code) for code in range(256)}


@dataclass
class _WholeNumber:
    """Stands for NumPy's dtype: bytes, whether there is a sign, byte order."""

    size: int
    signed: bool
    order: Literal["little", "big"] = "little"

    def __setstate__(self, state: Any) -> None:
        mark = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if mark not in ("<", ">", "|", "="):
            raise ValueError("a byte order that is not known")
        self.order = "big" if mark == ">" else "little"


def _dtype(code: Any, *_: Any) -> _WholeNumber:
    text = code.decode("latin-1") if isinstance(code, bytes) else code
    if not re.fullmatch("[iu][1248]", text):
        raise ValueError(f"the type {text[:20]!r} of NumPy's numbers is not allowed")
    return _WholeNumber(int(text[1]), signed=text[0] == "i")


def _encode(text: Any, encoding: Any) -> Any:
    # Protocols up to 2 write bytes so. Each call copies, so that only numbers may be so long.
    if encoding not in ("latin1", "latin-1") or len(text) > 8:
        raise ValueError("bytes that are no number of NumPy's")
    return text.encode("latin-1")


def _scalar(kind: Any, content: Any) -> int:
    raw = content.encode("latin-1") if isinstance(content, str) else content
    if not isinstance(kind, _WholeNumber) or not isinstance(raw, bytes) or len(raw) != kind.size:
        raise ValueError("a number of NumPy's that is damaged")
    return int.from_bytes(raw, kind.order, signed=kind.signed)


_CALLABLES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}
