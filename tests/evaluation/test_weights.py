"""Weights files: found, checked, fetched whole or not at all."""

from __future__ import annotations

import hashlib
import urllib.request
from pathlib import Path

import pytest

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.detectors.weights import (
    WeightsFile,
    cache_folder,
    fetch,
    inception_file,
    literature_file,
    weights_of,
)

CONTENT = bytes(range(256)) * 9000
FILE = WeightsFile(f"https://example.org/a/net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth?raw=1")


def _source(tmp_path: Path, content: bytes = CONTENT) -> str:
    path = tmp_path / "source.bin"
    path.write_bytes(content)
    return path.as_uri()


def test_the_name_carries_the_hash() -> None:
    assert inception_file().name == "weights-inception-2015-12-05-6726825d.pth"
    assert inception_file().sha256_prefix == "6726825d"
    assert literature_file().name == "inception_v3_google-0cc3c7bd.pth"
    assert FILE.name == f"net-{FILE.sha256_prefix}.pth"


def test_a_file_is_fetched_and_recognized(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert not FILE.is_in(folder)
    path = fetch(FILE, folder, _source(tmp_path))
    assert path == folder / FILE.name
    assert path.read_bytes() == CONTENT
    assert FILE.is_in(folder)
    path.write_bytes(CONTENT[:-1])
    assert not FILE.is_in(folder)


def test_wrong_content_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with pytest.raises(EvaluationError, match="its SHA-256 begins with"):
        fetch(FILE, folder, _source(tmp_path, b"another file"))
    assert list(folder.iterdir()) == []


def test_a_broken_download_keeps_the_old_file(tmp_path: Path) -> None:
    old = tmp_path / FILE.name
    old.write_bytes(b"old")
    with pytest.raises(EvaluationError, match="SHA-256"):
        fetch(FILE, tmp_path, _source(tmp_path, CONTENT[:5000]))
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/net.pth", "file:///no/such/file", "no url"])
def test_no_connection_is_one_sentence(tmp_path: Path, url: str) -> None:
    with pytest.raises(EvaluationError, match="on a machine with internet and copy net-"):
        fetch(FILE, tmp_path, url)


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "t2i_hpc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "t2i_hpc"


def test_missing_weights_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EvaluationError) as refusal:
        weights_of(inception_file(), "inception", "")
    for words in (
        "python -m t2i_hpc.fetch what=inception",
        str(tmp_path / "t2i_hpc" / inception_file().name),
        "evaluation.detector_weights=",
    ):
        assert words in str(refusal.value)
    with pytest.raises(EvaluationError, match="missing at elsewhere"):
        weights_of(inception_file(), "inception", "elsewhere")
    with pytest.raises(EvaluationError, match="fetch what=inception_literature"):
        weights_of(literature_file(), "inception_literature", "")


def test_damaged_weights_in_the_cache_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cache_folder() / inception_file().name
    path.parent.mkdir()
    path.write_bytes(b"half of it")
    with pytest.raises(EvaluationError, match="is damaged"):
        weights_of(inception_file(), "inception", "")
    assert weights_of(inception_file(), "inception", str(path)) == path
