"""Commands without the seconds of importing: processes forked from one that has imported all.

They are real processes, with sessions and signals of their own; only their start is short. The
parent has run nothing but imports, so that it has no threads when it forks.

As a program this is that parent: it reads a JSON line for each process wanted, answers with the
process's id, and with its exit status when asked for it.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.cluster.local_processes import free_port, rank_environment
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TrainConfig
from tests.support.training import TINY, environment

ENDLESS = ("engine.images=100000", "engine.samples_every_images=100000", "engine.batch_size=6")


@dataclass
class Rank:
    """A training process and the file that it prints to."""

    nursery: Nursery
    pid: int
    log: Path
    code: int | None = None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        if self.code is None:
            self.code = self.nursery.ask({"poll": self.pid})
        return self.code

    def wait(self, seconds: float = 300.0) -> int:
        """Return the exit code; fail with the output when it takes too long."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.send(signal.SIGABRT)
                raise AssertionError(f"rank still runs after {seconds} s:\n{self.log.read_text()}")
            time.sleep(0.01)
        assert self.code is not None
        return self.code


class Nursery:
    """The process that has imported all."""

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.preloaded", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )
        assert self.ask({"hello": 1}) == 1

    def ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def train(
        self,
        arguments: Sequence[str],
        log: Path,
        variables: Mapping[str, str],
        before: Callable[[], None] | None = None,
    ) -> Rank:
        """Start ``python -m t2i_hpc.train arguments…`` with some variables more.

        `before`, a function of a module, is called in the process before training.
        """
        called = f"{before.__module__}:{before.__name__}" if before else ""
        question = {"arguments": list(arguments), "log": str(log), "variables": dict(variables)}
        return Rank(self, self.ask({**question, "before": called}), log)

    def run(
        self, task: str, arguments: Sequence[str], cwd: Path | None, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with this process's environment of now."""
        with tempfile.TemporaryDirectory() as folder:
            log, errors = Path(folder, "stdout"), Path(folder, "stderr")
            question = {
                "task": task,
                "arguments": list(arguments),
                "log": str(log),
                "errors": str(errors),
                "variables": environment(),
                "folder": str(cwd or Path.cwd()),
            }
            code = Rank(self, self.ask({**question, "before": ""}), errors).wait(seconds)
            return subprocess.CompletedProcess(
                [task, *arguments], code, log.read_text(), errors.read_text()
            )

    def train_world(
        self,
        world: int,
        arguments: Sequence[str],
        folder: Path,
        before: Mapping[int, Callable[[], None]] | None = None,
    ) -> list[Rank]:
        """Start all ranks of a training; they print to ``rank<i>.log`` in `folder`."""
        port, ranks = free_port(), []
        for rank in range(world):
            place = rank_environment(rank, world, port)
            own = {k: v for k, v in place.items() if k.startswith(("RANK", "WORLD", "LO", "MA"))}
            log, called = folder / f"rank{rank}.log", (before or {}).get(rank)
            ranks.append(self.train(arguments, log, own if world > 1 else {}, called))
        return ranks

    def close(self) -> None:
        self._process.communicate()


@functools.cache
def of_commands() -> Nursery:
    """Return the one that runs commands to their end, for as long as this process lives."""
    made = Nursery()
    atexit.register(made.close)
    return made


@contextmanager
def nursery(*modules: str) -> Iterator[Nursery]:
    """Import t2i_hpc.train and `modules` once, for as many processes as are wanted."""
    made = Nursery(*modules)
    try:
        yield made
    finally:
        made.close()


def start_endless(
    home: Nursery,
    shards: Path,
    runs: Path,
    *arguments: str,
    world: int = 3,
    before: Mapping[int, Callable[[], None]] | None = None,
) -> list[Rank]:
    """Start a tiny training that never ends, with a batch of 6, and wait for three steps."""
    own = [f"data.path={shards}", f"runs={runs}", *TINY, *ENDLESS, *arguments]
    ranks = home.train_world(world, own, runs, before)
    end = time.monotonic() + 90
    while not any(len(read_json_lines(path)) >= 3 for path in runs.glob("*/metrics.jsonl")):
        assert time.monotonic() < end
        assert all(rank.poll() is None for rank in ranks), ranks[0].log.read_text()
        time.sleep(0.02)
    return ranks


def _serve(modules: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    for module in ("t2i_hpc.train", "torch._dynamo", "torch.utils.tensorboard", *modules):
        importlib.import_module(module)
    compose_config("train", (), TrainConfig)  # so that hydra knows all schemas
    for line in sys.stdin:
        question = json.loads(line)
        if "hello" in question:
            answer = question["hello"]
        elif "poll" in question:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork() or _become(**question)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _become(
    arguments: list[str],
    log: str,
    variables: dict[str, str],
    before: str,
    *,
    task: str = "train",
    errors: str = "",
    folder: str = "",
) -> int:
    """Be a command's process from here on; never returns."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, log), (2, errors or log)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    if folder:  # all of the environment is given
        os.chdir(folder)
        os.environ.clear()
    os.environ.update(variables)
    code = 1
    try:
        if before:
            module, _, function = before.partition(":")
            getattr(importlib.import_module(module), function)()
        name = f"t2i_hpc.{task}"
        sys.argv = [name, *arguments]
        sys.modules.pop(name, None)
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def slow_saves() -> None:
    """Let saves last, so that kills hit them."""
    flush = os.fsync

    def slow(fd: Any) -> None:
        time.sleep(0.04)
        flush(fd)

    os.fsync = slow


if __name__ == "__main__":
    _serve(sys.argv[1:])
