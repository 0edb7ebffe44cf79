"""Compiling after a process that was killed while it compiled."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import cpuinfo
import pytest

from t2i_hpc.training.deepspeed_build import compiling


def hold(may: Event, begun: Event) -> None:
    may.wait()
    with compiling():
        begun.set()
        time.sleep(1000)


def test_a_killed_process_leaves_no_lock_that_others_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    left = tmp_path / "extensions" / "py311_cpu" / "cpu_adam" / "lock"
    left.parent.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    may, begun = context.Event(), context.Event()
    other = context.Process(target=hold, args=(may, begun), daemon=True)
    other.start()
    may.set()
    assert begun.wait(60)
    left.touch()
    assert other.pid
    os.kill(other.pid, signal.SIGKILL)
    with compiling():
        assert not left.exists()
    other.join()


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    context = multiprocessing.get_context("fork")
    may, begun = context.Event(), context.Event()
    other = context.Process(target=hold, args=(may, begun), daemon=True)
    other.start()
    with compiling():
        may.set()
        assert not begun.wait(0.5)
    assert begun.wait(60)
    other.kill()
    other.join()


def test_the_processor_is_asked_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed asks for each optimizer, and py-cpuinfo starts ten processes for an answer."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with compiling():
        known = cpuinfo.get_cpu_info()
    asked = cpuinfo.get_cpu_info.cache_info().misses
    with compiling():
        assert cpuinfo.get_cpu_info() == known
    assert cpuinfo.get_cpu_info.cache_info().misses == asked


def test_the_ninja_of_this_python_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one, of another version, cannot use what the first has built."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # Python was started by its path
    with compiling():
        assert os.environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert os.environ["PATH"] == "/usr/bin:/bin"
