"""Several ranks of a task as processes of this machine.

Each process gets torchrun's variables and a free port. When one dies the others have a while to
find that out and say what they know; then they are ended. Signals are passed on to all.

Whether other machines can see a folder.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from t2i_hpc.cluster.network import ports
from t2i_hpc.common.errors import LOST_RANK, ClusterError
from t2i_hpc.common.process import heeded_signals
from t2i_hpc.common.terminal import say

_POLL_SECONDS = 0.1
_TRIES = 200
_GRACE_SECONDS = 15.0  # longer than a rank takes to miss another
_LAST_SECONDS = 10.0


def run_ranks(task: str, words: Sequence[str], processes: int) -> int:
    """Run ``python -m t2i_hpc.<task> words…`` as that many ranks; return the exit code.

    The code is 0 when all ranks ended with 0, else the first that is the cause of an end; where a
    signal ended a rank, that of a lost rank. Such a signal is told on standard error.
    """
    port = free_port()
    command = [sys.executable, "-m", f"t2i_hpc.{task}", *words]
    ranks: list[subprocess.Popen[bytes]] = []
    with _passing_on(ranks):
        try:
            for rank in range(processes):
                place = rank_environment(rank, processes, port)
                # A session of its own: a Ctrl-C of the terminal reaches it once, through us.
                ranks.append(subprocess.Popen(command, env=place, start_new_session=True))
            return _wait(ranks)
        finally:
            _end(ranks)


def rank_environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return the environment of one rank, in torchrun's variables."""
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on.

    None that the system may give to an outgoing connection before the ranks listen there.
    """
    for port in random.sample(ports(), _TRIES):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise ClusterError(f"no port of 127.0.0.1 from {ports()[0]} to {ports()[-1]} is free")


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Return when all ranks ended with 0, or one did otherwise and the others had time for it."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(codes):
            _tell_of_signals(ranks)
            _wait_for_all(ranks, _GRACE_SECONDS)
            return _code_of_all([rank.poll() for rank in ranks])
        if all(code == 0 for code in codes):
            return 0
        time.sleep(_POLL_SECONDS)


def _tell_of_signals(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for number, rank in enumerate(ranks):
        if rank.returncode is not None and rank.returncode < 0:
            name = signal.strsignal(-rank.returncode)
            say(
                f"t2i_hpc: rank {number} (pid {rank.pid}) was ended by signal "
                f"{-rank.returncode} ({name})",
                sys.stderr,
            )


def _code_of_all(codes: Sequence[int | None]) -> int:
    """Choose among exit codes of which one is not 0: causes before effects."""
    own = [code for code in codes if code and code > 0]
    causes = [code for code in own if code != LOST_RANK]
    if own:
        return (causes or own)[0]
    killed = min(code for code in codes if code)
    return LOST_RANK if len(codes) > 1 else 128 - killed


def _wait_for_all(ranks: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs: politely, then for sure, with the loader processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        alive = [rank for rank in ranks if rank.poll() is None]
        for rank in alive:
            _signal_session(rank, number)
        _wait_for_all(alive, _LAST_SECONDS)


def _signal_session(rank: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(rank.pid, number)
    except ProcessLookupError:
        return


@contextmanager
def _passing_on(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass signals of this process on to the ranks, which decide what they mean."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in heeded_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


def check_shared(folder: Path) -> None:
    """Refuse a folder that lies in this machine's memory.

    Raises:
        ClusterError: the nodes of a cluster would not see it.
    """
    kind = file_system(folder)
    if kind in _IN_MEMORY:
        raise ClusterError(
            f"{folder} lies in the memory of this machine ({kind}), where no node of the cluster "
            "sees it: take a folder on the shared file system"
        )


def file_system(folder: Path) -> str:
    """Return the kind of the file system that a folder lies on, or would; "" if unknown."""
    path = folder.resolve()
    best = kind = ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in filter(None, mounts.split("\n")):
        _, point, name, *_ = line.split(" ")
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), point)
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name  # of mounts at one point the last one counts
    return kind
