"""How far a rank's device is: what the heartbeat needs to see a hang there, and before NCCL does.

A host hands work to a GPU and goes on; where a kernel or a collective never ends, the host sits in
whatever reads from the device next, which says nothing. So each stage leaves an event in the
device's queue. The heartbeat's thread asks of them, and never waits for one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Protocol

import torch


class Event(Protocol):
    """A place in the device's queue, as :class:`torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether the device has come past it; returns at once."""


@dataclass(frozen=True)
class DeviceProgress:
    """Marks that were queued, marks that the device has passed, and the last of these."""

    queued: int = 0
    done: int = 0
    stage: str = ""


class DeviceClock:
    """The marks that a rank leaves in its device's queue.

    The main thread marks, the heartbeat's thread reads: one appends, the other takes, and a deque
    does each at once. Nothing here may run while a CUDA graph is captured, which forbids queries.

    Args:
        record: puts an event into the current stream.
    """

    def __init__(self, record: Callable[[], Event]) -> None:
        self._record = record
        self._pending: deque[tuple[int, str, Event]] = deque()
        self._queued = 0
        self._passed = (0, "")

    def mark(self, stage: str) -> None:
        """Leave a mark: what is queued from here on belongs to `stage`."""
        self._pending.append((self._queued + 1, stage, self._record()))
        self._queued += 1

    def read(self) -> DeviceProgress:
        """Return how far the device is now; never waits for it."""
        try:
            while self._pending and self._pending[0][2].query():
                number, stage, _ = self._pending.popleft()
                self._passed = number, stage
        except RuntimeError:
            pass  # the device failed: the main thread hears of it, and here it stands still
        return DeviceProgress(self._queued, *self._passed)


def device_clock(device: torch.device) -> DeviceClock | None:
    """Return the clock of a GPU; None for a CPU, which is where the host is."""
    if device.type != "cuda":
        return None

    def record() -> Event:
        event = torch.cuda.Event()
        event.record()
        return event

    return DeviceClock(record)


def let_heartbeat_be_first(environment: MutableMapping[str, str], timeout: float) -> None:
    """Set what NCCL does about a hang, unless the environment says otherwise.

    The heartbeat names the rank and exits with code 76 after `timeout` seconds. NCCL's watchdog,
    which names nobody and aborts with 134, has twice that time (the group's timeout). The thread
    that watches NCCL's watchdog has 480 s by default: less than engine.timeout is.
    """
    settings = {
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(round(3 * timeout)),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",  # end the process without cleaning up NCCL first
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",  # the flight recorder's last collectives
    }
    for name, value in settings.items():
        environment.setdefault(name, value)
