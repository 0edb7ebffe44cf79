"""Signals become flags; a second Ctrl-C exits from wherever the process is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from t2i_hpc.common.errors import INTERRUPTED
from t2i_hpc.common.process import STOP_SIGNALS
from t2i_hpc.training.stopping import listening


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with listening() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.requested
        assert stop.reason == number.name
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


STUCK = """
import threading
from t2i_hpc.training.stopping import listening
lock = threading.Lock()
with listening():
    lock.acquire()
    print("stuck", flush=True)
    {wait}
"""
IN_C = "import ctypes; [ctypes.CDLL(None).sleep(30) for _ in range(9)]"


@pytest.mark.parametrize("wait", ["lock.acquire()", IN_C])
def test_a_second_interrupt_exits_from_where_no_handler_runs(wait: str) -> None:
    command = [sys.executable, "-c", STUCK.format(wait=wait)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == INTERRUPTED
    assert errors == "interrupted again: exiting without a save\n"
