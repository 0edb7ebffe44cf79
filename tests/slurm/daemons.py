"""Daemons of a test: started aside from the terminal, found dead early, ended for sure."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Daemon:
    """One program in a session of its own, with its output in a file."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name, self.log = name, folder / "log" / f"{name}.out"
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until something holds; say what the daemon said if it dies or takes too long."""
        end = time.monotonic() + seconds
        while not ready():
            dead = self.process.poll() is not None
            if dead or time.monotonic() > end:
                said = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
                raise RuntimeError(f"{self.name} {'died' if dead else 'is not ready'}:\n{said}")
            time.sleep(0.05)

    def end(self, seconds: float = 10.0) -> None:
        """Ask it to end, then kill it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
            try:
                self.process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                continue

    def kill(self) -> None:
        """Cut it off at once."""
        self.process.kill()
        self.process.wait()


def succeeds(command: Sequence[str], environment: Mapping[str, str] | None = None) -> bool:
    """Whether a command ends with 0."""
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, check=False
    )
    return done.returncode == 0
