"""Writing while training runs: what is saved, when errors are heard, what a full disk does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i_hpc.common.errors import RunError
from t2i_hpc.runs.checkpoint import open_checkpoint, read_state, read_tensors
from t2i_hpc.runs.layout import clear_leftovers, folder_of, list_checkpoints
from t2i_hpc.training.checkpoints.writing import BackgroundWriter, check_space
from t2i_hpc.training.step import train_step
from tests.support.checkpoints import (
    NOISE,
    make_checkpoints,
    progress_of,
    save_checkpoint,
    saver_of,
    stepped,
)
from tests.support.training import environment, tiny_batch


class Gate(NamedTuple):
    """A disk that stands still until it is opened."""

    reached: threading.Event
    opened: threading.Event


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Let writing wait before its first byte."""
    made = Gate(threading.Event(), threading.Event())

    def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
        made.reached.set()
        assert made.opened.wait(60)
        save_file(tensors, path)

    monkeypatch.setattr("t2i_hpc.training.checkpoints.writing.save_file", slow)
    yield made
    made.opened.set()


def test_training_continues_and_what_is_saved_is_from_before(tmp_path: Path, gate: Gate) -> None:
    system, strategy = stepped()
    weights = {name: value.clone() for name, value in system.modules.state_dict().items()}
    moments = {name: value.clone() for name, value in strategy.read_moments().items()}
    saver = saver_of(tmp_path, strategy)
    saver.save(progress_of(4))
    assert gate.reached.wait(60)
    train_step(strategy, tiny_batch(), NOISE, 4)
    assert list_checkpoints(tmp_path) == []
    gate.opened.set()
    saver.finish()
    checkpoint = open_checkpoint(tmp_path, 4)
    written = read_tensors(*checkpoint.files), load_file(checkpoint.moments)
    for saved, expected in zip(written, (weights, moments), strict=True):
        assert saved.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in saved.items())
    now = system.modules.state_dict()
    assert any(not torch.equal(value, now[name]) for name, value in weights.items())


def test_a_second_save_waits_for_the_first(tmp_path: Path, gate: Gate) -> None:
    _, strategy = stepped()
    saver = saver_of(tmp_path, strategy)
    saver.save(progress_of(4))
    second = threading.Thread(target=saver.save, args=(progress_of(8),))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    gate.opened.set()
    second.join(60)
    saver.finish()
    assert list_checkpoints(tmp_path) == [4, 8]


def test_an_exit_waits_for_the_disk_after_an_error_too(tmp_path: Path, gate: Gate) -> None:
    _, strategy = stepped()
    threading.Timer(0.2, gate.opened.set).start()
    with pytest.raises(RunError, match="not finite"), saver_of(tmp_path, strategy) as saver:
        saver.save(progress_of(4))
        raise RunError("not finite")
    assert list_checkpoints(tmp_path) == [4]


def test_a_person_who_insists_exits_at_once(tmp_path: Path, gate: Gate) -> None:
    _, strategy = stepped()
    with pytest.raises(KeyboardInterrupt), saver_of(tmp_path, strategy) as saver:
        saver.save(progress_of(4))
        raise KeyboardInterrupt
    assert not gate.opened.is_set()
    assert list_checkpoints(tmp_path) == []


def test_an_error_while_training_is_due_at_once_and_raised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoints(tmp_path, 4)
    saver = saver_of(tmp_path, stepped()[1])
    monkeypatch.setattr("t2i_hpc.training.checkpoints.writing.save_file", _full)
    saver.save(progress_of(8))
    saver._writer._thread.join(60)  # type: ignore[union-attr]
    assert saver.due(progress_of(48))
    with pytest.raises(RunError, match=r"could not be written.*No space left.*are intact"):
        saver.save(progress_of(48))
    assert not saver.due(progress_of(48))
    saver.finish()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0000000004"]


def _full(tensors: dict[str, torch.Tensor], path: Path) -> None:
    raise OSError(28, "No space left on device", str(path))


def _defect() -> None:
    raise KeyError("a name that is not there")


def test_a_defect_in_the_thread_keeps_its_own_type() -> None:
    writer = BackgroundWriter()
    writer.start(_defect)
    error, _ = writer.wait()
    assert isinstance(error, KeyError)
    assert not writer.failed


def test_nothing_new_is_not_written_again(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 4)
    saver = saver_of(tmp_path, stepped(0)[1])
    before = read_state(tmp_path, 4).state
    saver.save(saver.resume())
    saver.finish()
    assert read_state(tmp_path, 4).state == before


def test_the_state_says_what_made_it(tmp_path: Path) -> None:
    with saver_of(tmp_path, stepped()[1]) as saver:
        saver.save(progress_of(4))
    origin = read_state(tmp_path, 4).state["origin"]
    assert origin["engine"].startswith("DDP of torch")
    assert (origin["world"], origin["precision"], origin["run"]) == (1, "fp32", tmp_path.name)
    assert origin["versions"]["torch"] == torch.__version__


def test_too_little_room_is_said_before_anything_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoints(tmp_path, 0, 4, 8)
    _, strategy = stepped()
    saver = saver_of(tmp_path, strategy)
    needed = sum(v.nbytes for v in strategy.read_moments().values()) + 1_000_000
    needed += sum(v.nbytes for v in strategy.system.modules.state_dict().values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 500_000))
    with pytest.raises(RunError, match=rf"{tmp_path} has .* make room for 0\.5 MB more"):
        saver.save(progress_of(12))
    saver.finish()
    assert list_checkpoints(tmp_path) == [0, 4, 8]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    saver.save(progress_of(12))
    saver.finish()
    assert list_checkpoints(tmp_path) == [8, 12]


def test_the_room_is_that_of_the_runs_disk(tmp_path: Path) -> None:
    check_space(tmp_path, {"a": torch.zeros(3)})
    huge = {"a": torch.empty(1 << 60, dtype=torch.uint8, device="meta")}
    with pytest.raises(RunError, match="make room"):
        check_space(tmp_path, huge)


SCRIPT = """
import resource, signal, sys
from pathlib import Path
from t2i_hpc.common.errors import RunError
from tests.support.checkpoints import progress_of, saver_of, stepped
system, strategy = stepped()
run = Path(sys.argv[1])
saver = saver_of(run, strategy)
saver.save(progress_of(4))
saver.finish()
largest = max(path.stat().st_size for path in run.glob("checkpoints/*/*"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for room in (10_000, largest // 2, largest - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    saver.save(progress_of(8))
    try:
        saver.finish()
    except RunError as error:
        print(error, *(path.name for path in (run / "checkpoints").iterdir()))
"""


def test_a_disk_that_is_full_in_the_middle(tmp_path: Path) -> None:
    """A limit on the size of a file refuses bytes in the middle of one, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "could not be written or deleted: " in line
        assert "File too large" in line
        assert line.endswith("the same command resumes from the last one 0000000004")
    open_checkpoint(tmp_path, 4)


def test_what_killed_sessions_left_is_cleared_at_the_next_save(tmp_path: Path) -> None:
    (folder,) = make_checkpoints(tmp_path, 4)
    for name in (".0000000008.tmp", ".deleted-0000000000"):
        shutil.copytree(folder, folder.with_name(name))
    shutil.copytree(folder, folder.with_name("damaged-0000000000"))
    assert list_checkpoints(tmp_path) == [4]
    with saver_of(tmp_path, stepped()[1]) as saver:
        saver.save(progress_of(12))
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"0000000004", "0000000012", "damaged-0000000000"}


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from t2i_hpc.runs import layout as folders

def half(path, **options):
    if Path(path).exists():
        next(Path(path).iterdir()).unlink()
        os.kill(os.getpid(), signal.SIGKILL)

shutil.rmtree = half
folders.remove(Path(sys.argv[1]))
"""


def test_a_deletion_that_is_killed_leaves_no_damaged_checkpoint(tmp_path: Path) -> None:
    old, _ = make_checkpoints(tmp_path, 4, 8)
    command = [sys.executable, "-c", KILLED, str(old)]
    done = subprocess.run(command, check=False, env=environment())
    assert done.returncode == -signal.SIGKILL
    assert list_checkpoints(tmp_path) == [8]
    assert len(list((tmp_path / "checkpoints").glob(".deleted-*"))) == 1
    clear_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0000000008"]


def test_one_of_the_same_number_is_replaced(tmp_path: Path) -> None:
    system, strategy = stepped()
    make_checkpoints(tmp_path, 4)
    train_step(strategy, tiny_batch(), NOISE, 4)
    save_checkpoint(tmp_path, system.modules, strategy.read_moments(), progress_of(4))
    loaded = load_file(folder_of(tmp_path, 4) / "weights.safetensors")
    now = system.modules.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in loaded.items())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0000000004"]


@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_files_have_the_mode_that_the_umask_allows(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        (folder,) = make_checkpoints(tmp_path, 4)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert len(modes) == 3
