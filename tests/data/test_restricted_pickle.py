"""Pickles of data are read as pickle itself reads them; others are refused, in little memory."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from collections import OrderedDict
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_hpc.common.errors import DataError
from t2i_hpc.data import restricted_pickle
from t2i_hpc.data.restricted_pickle import load_data

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text() | st.integers()


def data(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
        max_leaves=30,
    )


WRITTEN = st.tuples(data(SCALARS), st.integers(0, 2)) | st.tuples(
    data(SCALARS | st.binary()), st.integers(3, 5)
)


def load(folder: Path, content: bytes) -> object:
    path = folder / "a.pickle"
    path.write_bytes(content)
    return load_data(path, "a list")


@settings(max_examples=150, deadline=None)
@given(written=WRITTEN)
def test_data_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, written: tuple[Any, int]
) -> None:
    value, protocol = written
    assert load(tmp_path_factory.getbasetemp(), pickle.dumps(value, protocol)) == value


# What Python 2 wrote: pickle.dumps(["a\xe9", u"b", 3L, {"k": (1, 2.5)}, True, None], protocol)
PYTHON_2 = {
    0: b"(lp0\nS'a\\xe9'\np1\naVb\np2\naL3L\na(dp3\nS'k'\np4\n(I1\nF2.5\ntp5\nsaI01\naNa.",
    2: b"\x80\x02]q\x00(U\x02a\xe9q\x01X\x01\x00\x00\x00bq\x02\x8a\x01\x03}q\x03U\x01kq\x04K\x01"
    b"G@\x04\x00\x00\x00\x00\x00\x00\x86q\x05s\x88Ne.",
}


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_pickles_of_python_2(tmp_path: Path, protocol: int) -> None:
    expected = ["a\xe9", "b", 3, {"k": (1, 2.5)}, True, None]
    assert pickle.loads(PYTHON_2[protocol], encoding="latin1") == expected
    assert load(tmp_path, PYTHON_2[protocol]) == expected


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["i1", "<i8", ">i4", "u2", ">u8"])
def test_whole_numbers_of_numpy(tmp_path: Path, protocol: int, kind: str) -> None:
    """The official class_info.pickle of CUB holds such, as Python 2 wrote them."""
    written = list(np.array([3, 100, 7, 3], dtype=kind))
    found = load(tmp_path, pickle.dumps(written, protocol))
    assert found == [3, 100, 7, 3]
    assert [type(number) for number in found] == [int] * 4


def test_whole_numbers_of_numpy_by_python_2(tmp_path: Path) -> None:
    content = (
        b"(lp0\ncnumpy.core.multiarray\nscalar\np1\n(cnumpy\ndtype\np2\n(S'i8'\np3\nI0\nI1\ntp4\n"
        b"Rp5\n(I3\nS'<'\np6\nNNNI-1\nI-1\nI0\ntp7\nbS'\\x80\\x00\\x00\\x00\\x00\\x00\\x00\\x00'\n"
        b"p8\ntp9\nRp10\nag1\n(g5\nS'\\x81\\x00\\x00\\x00\\x00\\x00\\x00\\x00'\np11\ntp12\nRp13\na."
    )
    assert list(pickle.loads(content, encoding="latin1")) == [128, 129]
    assert load(tmp_path, content) == [128, 129]


@pytest.mark.parametrize("value", [np.float64(1), np.array([1, 2]), np.datetime64("2020")])
def test_other_things_of_numpy_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"cannot be read as a pickle of lists"):
        load(tmp_path, pickle.dumps(value, 2))


def test_line_ends_that_git_changed(tmp_path: Path) -> None:
    names = [f"a/{number}\r\n" for number in range(20)]
    text = pickle.dumps(names, 0).replace(b"\n", b"\r\n")
    assert load(tmp_path, text) == names
    binary = pickle.dumps([10] * 20, 2).replace(b"\n", b"\r\n")
    with pytest.raises(DataError, match="its line ends were changed to CR LF, as git does"):
        load(tmp_path, binary)


def test_shared_and_circular_objects(tmp_path: Path) -> None:
    inner: list[Any] = [1]
    inner.append(inner)
    found: Any = load(tmp_path, pickle.dumps([inner, inner]))
    assert found[0] is found[1]
    assert found[0][1] is found[0]


class Call:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made",)


FOREIGN = {
    "a call": Call(),
    "a function": os.system,
    "a class": Path,
    "an array": np.zeros(2),
    "a number of numpy": np.float64(3),
    "a decimal": Decimal(1),
    "an ordered dict": OrderedDict(a=1),
    "a set": {1},
    "an array of bytes": bytearray(b"a"),
    "a complex number": 1j,
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", FOREIGN)
def test_anything_else_is_refused(
    tmp_path: Path, name: str, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"a\.pickle, a list, cannot be read .* is not allowed"):
        load(tmp_path, pickle.dumps(["a", FOREIGN[name]], protocol))
    assert not (tmp_path / "made").exists()


DEEP = 300_000
HOSTILE = {
    "a string of gigabytes": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00a.",
    "bytes of gigabytes": b"\x80\x03B\xff\xff\xff\xffa.",
    "an array of gigabytes": b"\x80\x05\x96" + b"\xff" * 6 + b"\x00\x00a.",
    "a number of gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "a number of many digits": b"I" + b"9" * DEEP + b"\n.",
    "a deep key": b"\x80\x02})" + b"\x85" * DEEP + b"K\x01s.",
    "a key that doubles": b"\x80\x02})" + b"q\x000h\x00h\x00\x86" * 100 + b"K\x01s.",
    "a type whose name doubles": b"\x80\x02cnumpy\ndtype\n]"
    + b"q\x000]h\x00ah\x00a" * 100
    + b"\x85R.",
    "a persistent name": b"\x80\x02K\x01Q.",
    "an extension": b"\x80\x02\x82\x01.",
    "an instance": b"(ios\nsystem\n.",
    "an object": b"(cos\nsystem\no.",
    "a state": b"\x80\x02]}b.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "nothing": b"",
    "only an end": b".",
    "two results": b"\x80\x02]].",
    "a mark as the result of an append": b"\x80\x02](a.",
    "no list to append to": b"\x80\x02K\x01K\x02a.",
    "an append to nothing": b"a.",
    "no mark": b"\x80\x02]K\x01e.",
    "an unknown place": b"\x80\x02h\x05.",
    "a dict of three": b"(K\x01K\x02K\x03d.",
    "no end": b"\x80\x02]q\x00",
    "no pickle": b"\x89PNG\r\n",
}
HARMLESS = {
    "a frame of gigabytes": b"\x80\x04\x95" + b"\xff" * 7 + b"\x00].",
    "a table of gigabytes": b"\x80\x02]r\xff\xff\xff\x7f.",
    "deep lists": b"\x80\x02]" + b"]" * DEEP + b"a" * DEEP + b".",
    "lists that double": b"\x80\x02]" + b"q\x000]h\x00ah\x00a" * 100 + b".",
    "many marks": b"\x80\x02" + b"(" * DEEP + b"1" * DEEP + b"].",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"a\.pickle, a list, cannot be read as a pickle"):
        load(tmp_path, HOSTILE[name])


def test_neither_memory_nor_stack_are_exhausted(tmp_path: Path) -> None:
    for number, content in enumerate([*HOSTILE.values(), *HARMLESS.values()]):
        (tmp_path / f"{number}.pickle").write_bytes(content)
    program = f"""
import resource
from pathlib import Path
from t2i_hpc.common.errors import DataError
from t2i_hpc.data.restricted_pickle import load_data

refused = 0
for path in Path({str(tmp_path)!r}).glob("*.pickle"):
    try:
        load_data(path, "a list")
    except DataError:
        refused += 1
assert refused == {len(HOSTILE)}, refused
"""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    subprocess.run([sys.executable, "-c", program], check=True, preexec_fn=limit, timeout=120)


@settings(max_examples=500, deadline=None)
@given(content=st.binary(max_size=60))
def test_noise_is_data_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    try:
        load(tmp_path_factory.getbasetemp(), content)
    except DataError:
        return


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.pickle, a list: No such file"):
        load_data(tmp_path / "none.pickle", "a list")
    monkeypatch.setattr(restricted_pickle, "LARGEST", 9)
    with pytest.raises(DataError, match=r"has 10 bytes, more than the 9 that are read"):
        load(tmp_path, b"x" * 10)
