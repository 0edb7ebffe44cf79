"""Building in several processes and over interruptions: always the same bytes, never a hang."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
from PIL import Image

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build import shard as shard_module
from t2i_hpc.data.build import split_writer as writer
from t2i_hpc.data.build.conversion import convert
from t2i_hpc.data.build.split_writer import build_split, check_source
from t2i_hpc.data.build.workspace import locked
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.format.tars import write_tar
from t2i_hpc.data.verification import verify_split
from tests.support.data import draw_image, make_image_folder

IMAGES, EACH = 23, 3
EMPTY_SHARD = range(6, 9)
Files = dict[str, bytes]


def prepare(tmp_path: Path) -> ShardsConfig:
    """Return a build of 8 shards; image 4 is damaged, and so are all of shard 2."""
    images = make_image_folder(tmp_path / "in", range(IMAGES))
    Image.new("RGB", (2000, 3)).save(images / "0004.png")
    for number in EMPTY_SHARD:
        (images / f"{number:04d}.png").write_bytes(b"no image")
    return ShardsConfig(
        images=str(images),
        output=str(tmp_path / "out"),
        size=24,
        shard_samples=EACH,
        max_rejected=0.2,
        workers=0,
    )


def files(config: ShardsConfig) -> Files:
    """Return all files of the output by path, but for locks, which a killed build leaves."""
    root = Path(config.output)
    paths = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def uninterrupted(tmp_path: Path, config: ShardsConfig) -> Files:
    other = replace(config, output=str(tmp_path / "uninterrupted"))
    build_split(other)
    return files(other)


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    expected = uninterrupted(tmp_path, config)
    assert sorted(expected) == sorted(
        ["vocabulary.json"]
        + [f"train/{number:06d}.tar" for number in range(7)]
        + [f"train/{name}" for name in ("index.npy", "shards.npy", "manifest.json")]
        + ["train/rejected.jsonl"]
    )
    for workers in (1, 3, 20):
        built = build_split(replace(config, workers=workers))
        assert files(config) == expected
        assert (built.rejected, built.manifest.counts.tolist()) == (4, [3, 2, 3, 3, 3, 3, 2])
        verify_split(built.manifest, lambda _: None)
        shutil.rmtree(config.output)


def child_dies(work: Callable[[], object]) -> bool:
    """Run `work` in a fork; return whether it was killed."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def build_and_die(config: ShardsConfig, step: int) -> None:
    """Build, and be killed before the `step`-th time that something is made durable."""
    flush, calls = os.fsync, []

    def flush_or_die(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    with patch("os.fsync", flush_or_die):
        build_split(config)


def test_a_kill_at_any_step_changes_nothing(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    expected = uninterrupted(tmp_path, config)
    kills = 0
    while child_dies(partial(build_and_die, config, kills + 1)):
        assert not (Path(config.output) / "train").exists()
        kills += 1
    assert kills > 8
    assert files(config) == expected


def test_a_kill_while_finishing_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepare(tmp_path)
    expected = uninterrupted(tmp_path, config)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writer, "finish", Mock(side_effect=KeyboardInterrupt))
        build_split(config)
    state, output = tmp_path / "state", Path(config.output)
    output.rename(state)
    steps = 0
    died = True
    while died:
        steps += 1
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(state, output)
        died = child_dies(partial(build_and_die, config, steps))
        if not (output / "train").exists():
            build_split(config)
        shutil.rmtree(output / ".train.partial", ignore_errors=True)
        assert files(config) == expected
    assert steps > 8


SLOW = """
import time
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build import shard
from t2i_hpc.data.build.split_writer import build_split, check_source

convert = shard.convert

def convert_slowly(*arguments):
    time.sleep(0.06)
    return convert(*arguments)

shard.convert = convert_slowly
build_split({config!r})
"""


def start_slowly(config: ShardsConfig) -> subprocess.Popen[bytes]:
    """Begin to build in a process group of its own; return when two shards are done."""
    program = [sys.executable, "-c", SLOW.format(config=config)]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, start_new_session=True)
    notes = Path(config.output) / ".train.partial"
    while len(list(notes.glob("0*.json"))) < 2:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_killed_group_of_processes(
    tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(prepare(tmp_path), workers=workers)
    expected = uninterrupted(tmp_path, config)
    process = start_slowly(config)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = {path.name for path in Path(config.output).iterdir()}
    assert left == {".train.partial", ".train.lock", ".splits.lock"}
    capsys.readouterr()
    build_split(config)
    assert " of 8 shards are done\n" in capsys.readouterr().err
    assert files(config) == expected


def test_ctrl_c_ends_the_workers_and_the_build_resumes_later(tmp_path: Path) -> None:
    config = replace(prepare(tmp_path), workers=3)
    process = start_slowly(config)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)  # its end: no worker holds the pipe any more
    assert process.returncode != 0
    assert errors.count(b"Traceback") == 1
    expected = uninterrupted(tmp_path, config)
    build_split(config)
    assert files(config) == expected


def test_ctrl_c_is_not_for_the_workers(tmp_path: Path) -> None:
    config = replace(prepare(tmp_path), workers=3)
    process = start_slowly(config)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 3
    for child in children:
        os.kill(int(child), signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert files(config) == uninterrupted(tmp_path, config)


@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(prepare(tmp_path), workers=3)

    def convert_or_die(sample: Any, settings: ShardsConfig) -> Any:
        if sample.key == "0013.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return convert(sample, settings)

    with monkeypatch.context() as patched:
        patched.setattr(shard_module, "convert", convert_or_die)
        with pytest.raises(DataError, match=r"killed \(SIGKILL\), perhaps for lack of memory"):
            build_split(config)
    expected = uninterrupted(tmp_path, config)
    capsys.readouterr()
    build_split(config)
    assert "resuming: " in capsys.readouterr().err
    assert files(config) == expected


def test_workers_without_their_parent_end(tmp_path: Path) -> None:
    config = replace(prepare(tmp_path), workers=3)
    process = start_slowly(config)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    notes = Path(config.output) / ".train.partial"
    done = len(list(notes.glob("0*.json")))
    process.communicate(timeout=60)  # ends when no worker holds the pipe of errors any more
    assert len(list(notes.glob("0*.json"))) <= done + 1  # at most one was all but done
    build_split(config)  # nobody holds the lock


def test_a_resumed_build_makes_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = prepare(tmp_path)
    with pytest.raises(DataError):
        build_split(replace(config, max_rejected=0.08))
    capsys.readouterr()
    made = []

    def counted(sample: Any, settings: ShardsConfig) -> Any:
        made.append(sample.key)
        return convert(sample, settings)

    monkeypatch.setattr(shard_module, "convert", counted)
    build_split(config)
    assert made == [f"{number:04d}.png" for number in range(2 * EACH, IMAGES)]
    said = capsys.readouterr().err
    assert "resuming: 2 of 8 shards are done\n" in said
    assert "folder/train: 17 of 17 images" in said


def test_only_shards_whose_source_changed_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = prepare(tmp_path)
    with pytest.raises(DataError):
        build_split(replace(config, max_rejected=0.08))
    draw_image(4, 48, 40).save(Path(config.images) / "0004.png")
    capsys.readouterr()
    build_split(config)
    assert "resuming: 1 of 8 shards are done\n" in capsys.readouterr().err
    assert files(config) == uninterrupted(tmp_path, config)


def test_other_settings_start_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = prepare(tmp_path)
    with pytest.raises(DataError):
        build_split(replace(config, max_rejected=0.08))
    other = replace(config, quality=50, shard_samples=4)
    capsys.readouterr()
    build_split(other)
    assert "starting over: " in capsys.readouterr().err
    assert files(other) == uninterrupted(tmp_path, other)


def test_a_shard_is_not_done_while_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepare(tmp_path)
    with pytest.raises(DataError):
        build_split(replace(config, max_rejected=0.08))
    note = Path(config.output) / ".train.partial" / "000000.json"
    assert note.exists()
    stop = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(shard_module, "write_bytes", stop)  # when the tar is written
    with pytest.raises(KeyboardInterrupt):
        build_split(replace(config, quality=50))
    assert not note.exists()


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    with pytest.raises(DataError):
        build_split(replace(config, max_rejected=0.08))
    folder = Path(config.output) / ".train.partial"
    tar, rows = folder / "split" / "000000.tar", folder / "000001.rows"
    tar.write_bytes(tar.read_bytes()[:-1])
    rows.write_bytes(rows.read_bytes()[:-1])
    (folder / "build.json").write_text("[" * 100_000)
    build_split(config)
    assert files(config) == uninterrupted(tmp_path, config)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    config = replace(prepare(tmp_path), workers=workers)

    def write_or_fail(path: Path, records: Any) -> None:
        write_tar(path, records)
        if "000003" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(shard_module, "write_tar", write_or_fail)
        with pytest.raises(DataError, match=r"disk of .* is full .*finished shards are kept"):
            build_split(config)
    split = Path(config.output) / ".train.partial" / "split"
    assert (split / "000001.tar").exists()
    assert not list(split.glob(".000003*"))
    build_split(config)
    assert files(config) == uninterrupted(tmp_path, config)


@pytest.mark.parametrize(
    ("form", "largest"), [("png", 60_000), ("jpeg", 65_000), ("original", 60_000)]
)
def test_what_will_not_fit_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, largest: int
) -> None:
    config = prepare(tmp_path)
    config = replace(config, format=form, size=304 if form == "original" else config.size)
    free = 19 * 512 * 3
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(DataError, match=r"23 images need about [\d,]+ bytes, .* 29,184 free"):
            build_split(config)
        assert list(Path(config.output).iterdir()) == []
        patched.setattr("shutil.disk_usage", lambda _: usage._replace(free=largest * 2))
        build_split(config)
    assert Manifest.load(Path(config.output) / "train").bytes <= largest * 2


@pytest.mark.parametrize(
    ("key", "value", "form", "advice"),
    [
        ("size", 256, "original", "format=jpeg or format=webp or format=png"),
        ("quality", 90, "original", "format=jpeg or format=webp"),
        ("quality", 90, "png", "format=jpeg or format=webp"),
    ],
)
def test_settings_that_a_format_has_no_use_for_are_refused(
    tmp_path: Path, key: str, value: int, form: str, advice: str
) -> None:
    settings: dict[str, Any] = {key: value, "format": form}
    config = ShardsConfig(images=str(tmp_path), output=str(tmp_path / "out"), **settings)
    with pytest.raises(DataError) as refusal:
        check_source(config)
    assert f"{key}={value} has no meaning with format={form}" in str(refusal.value)
    assert str(refusal.value).endswith(advice)
    with pytest.raises(DataError, match="has no meaning"):
        build_split(config)
    assert not (tmp_path / "out").exists()


def test_locks_of_a_build_have_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with locked(tmp_path / "lock", "busy"):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)
