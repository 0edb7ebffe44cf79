"""Local shards: one read a sample when all is well, retries when it is not, then one sentence."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.split import Split
from t2i_hpc.data.storage.fetching import is_remote, join
from t2i_hpc.data.storage.retry import RetryPolicy, shown, without_secrets
from tests.support.data import make_shards

LONG = 60.0  # seconds; nothing takes as long unless it is broken


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_shards(tmp_path, count=6, size=16, shard_samples=3)


def split_of(shards: Path, retry_seconds: float = LONG) -> Split:
    return Split.open(DataConfig(path=str(shards), retry_seconds=retry_seconds), "train")


def later(action: Callable[[], object]) -> None:
    threading.Timer(0.4, action).start()


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of the system that storage may make."""
    calls: Counter[str] = Counter()

    def count(name: str, call: Any) -> Any:
        def counting(*arguments: Any, **keywords: Any) -> Any:
            calls[name] += 1
            return call(*arguments, **keywords)

        return counting

    for name in ("pread", "open", "fstat", "stat"):
        monkeypatch.setattr(os, name, count(name, getattr(os, name)))
    return calls


def test_a_read_of_an_open_shard_is_one_call(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(shards)
    split.sample(0)
    calls = counted(monkeypatch)
    split.sample(1)
    assert calls == {"pread": 1}


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET])
def test_a_file_system_that_stumbles_is_asked_again(
    shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    split = split_of(shards)
    expected = split.sample(1)
    pread, failures = os.pread, iter(range(3))

    def stumbling(*arguments: int) -> bytes:
        if next(failures, None) is not None:
            raise OSError(code, os.strerror(code))
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", stumbling)
    assert split.sample(1) == expected
    (record,) = caplog.records
    assert "000000.tar" in record.message
    assert os.strerror(code) in record.message
    assert record.levelno == logging.WARNING


def test_a_shard_that_comes_back_is_read_on(shards: Path) -> None:
    split = split_of(shards)
    tar = shards / "train" / "000000.tar"
    aside = tar.rename(shards / "aside")
    later(lambda: aside.rename(tar))
    assert split.sample(0).key == "0000.png"


def test_a_shard_that_is_whole_again_is_read_on(shards: Path) -> None:
    split = split_of(shards)
    expected = split.sample(2)
    tar = shards / "train" / "000000.tar"
    content = tar.read_bytes()
    os.truncate(tar, 700)
    later(lambda: tar.write_bytes(content))
    assert split.sample(2) == expected


def test_a_shard_of_another_size_is_refused_when_it_is_opened(shards: Path) -> None:
    split = split_of(shards, retry_seconds=0.3)
    with (shards / "train" / "000000.tar").open("ab") as stream:
        stream.write(bytes(512))
    with pytest.raises(DataError, match=r"000000\.tar \(it has .* bytes instead of ") as caught:
        split.sample(0)
    assert "data.retry_seconds" in str(caught.value)
    assert " times in " in str(caught.value)


def test_no_retries_is_one_try(shards: Path) -> None:
    split = split_of(shards, retry_seconds=0)
    (shards / "train" / "000000.tar").unlink()
    with pytest.raises(DataError, match=r"000000\.tar \(there is no such file; tried once\)"):
        split.sample(0)


def test_a_forbidden_shard_is_reported_at_once(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of(shards)

    def forbidden(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(DataError, match=r"Permission denied; tried 2 times"):
        split.sample(0)


def test_waits_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    def fails(seconds: float) -> None:
        assert 1.0 <= seconds <= 100.0
        raise TimeoutError

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with pytest.raises(DataError, match=r"cannot read it \(no answer in time; .* in 100 s\): wait"):
        RetryPolicy(100.0).attempt("it", fails, "wait")
    assert 0.05 <= waits[0] <= 0.1
    assert 5.0 <= waits[8] <= 10.0
    assert max(waits) <= 10.0
    assert sum(waits) == pytest.approx(100.0)


def test_defects_are_no_failures_in_passing() -> None:
    def defect(_: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        RetryPolicy(LONG).attempt("it", defect, "wait")


@pytest.mark.parametrize(
    ("address", "remote"),
    [("shards/coco", False), ("/a:b/c", False), ("https://h/x", True), ("s3://b/x", True)],
)
def test_addresses_and_paths(address: str, remote: bool) -> None:
    assert is_remote(address, "data.path") is remote


@pytest.mark.parametrize(
    "address", ["pipe:cat x", "PIPE:cat x", "ftp://h/x", "file:///x", "simplecache::http://h/x"]
)
def test_what_is_not_offered_is_refused(address: str) -> None:
    with pytest.raises(DataError, match=r"data\.path=.*http://, https://, s3:// or gs://"):
        Split.open(DataConfig(path=address), "train")


def test_names_in_addresses() -> None:
    assert join("http://h/a/?key=1", "b", "c") == "http://h/a/b/c?key=1"
    assert join("s3://bucket/a?b", "c") == "s3://bucket/a?b/c"
    assert shown("https://me:secret@h:8/a/b?signature=1#x") == "https://h:8/a/b"
    text = "503, url='https://me:secret@h/a?signature=1' failed"
    assert without_secrets(text) == "503, url='https://h/a' failed"
