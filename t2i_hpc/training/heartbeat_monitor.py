"""Who of the ranks is lost: judged from their beats, once a second, by one of them.

Time is counted in ticks of the judge's own clock, a second each while it runs. So a job that
was suspended as a whole, or a judge that was held up, accuses nobody when it goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SILENCE_TICKS = 10
"""Ticks without a beat after which a process counts as stopped or its node as gone."""

DIED = "died"
SILENT = f"gave no sign of life for {SILENCE_TICKS} s (stopped, or its node is gone)"

_FAREWELL_TICKS = 3  # time for the others to leave for the same reason by themselves
_NAMED = 4


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself every second.

    Attributes:
        rank, host, pid: who it is.
        mark: number of things it began so far; all ranks begin the same ones in one order.
        doing: the last of these, in words.
        where: file and line of the project where its main thread is; "" where unknown.
        waits: whether it is inside of an operation that other ranks take part in.
        farewell: None while it runs; "" when it is done; else why it leaves.
    """

    rank: int
    host: str = "an unknown host"
    pid: int = 0
    mark: int = 0
    doing: str = "starting"
    where: str = ""
    waits: bool = False
    farewell: str | None = None

    def name(self) -> str:
        """Return rank, host and process in words."""
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


@dataclass
class Watch:
    """What the judge knows of a rank; counts are of ticks."""

    beat: Beat
    silent: int = 0
    still: int = 0
    since_farewell: int = 0
    gone: bool = False

    def hear(self, beat: Beat) -> None:
        """Take note of a beat."""
        self.silent = 0
        if beat.mark != self.beat.mark:
            self.still = 0
        self.beat = beat

    def tick(self) -> None:
        """Let a second pass."""
        self.silent += 1
        self.still += 1
        self.since_farewell += self.beat.farewell is not None

    @property
    def left(self) -> bool:
        """Whether the rank took its leave."""
        return self.beat.farewell is not None


@dataclass
class HeartbeatMonitor:
    """Finds lost ranks.

    Attributes:
        size: number of ranks.
        patience: ticks without any progress after which a rank that holds up others hangs.
        accused: the hosts of the lost ranks, each once, when a verdict was reached.
    """

    size: int
    patience: float
    watches: list[Watch] = field(init=False)
    accused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.watches = [Watch(Beat(rank)) for rank in range(self.size)]

    def tick(self) -> str | None:
        """Let a second pass; return what is to be said of lost ranks, None while all is well."""
        for watch in self.watches:
            watch.tick()
        return self._gone() or self._silent() or self._left() or self._hanging()

    def all_left(self, but: int) -> bool:
        """Whether all ranks except one took their leave or are gone."""
        return all(w.left or w.gone for w in self.watches if w.beat.rank != but)

    def _gone(self) -> str | None:
        gone = [w for w in self.watches if w.gone and not w.left]
        return self._accuse(gone, DIED) if gone else None

    def _silent(self) -> str | None:
        silent = [w for w in self.watches if w.silent > SILENCE_TICKS and not w.left]
        return self._accuse(silent, SILENT) if silent else None

    def _left(self) -> str | None:
        for watch in self.watches:
            if watch.beat.farewell and watch.since_farewell > _FAREWELL_TICKS:
                self.accused = hosts_of([watch])
                return of_left(watch.beat)
        return None

    def _hanging(self) -> str | None:
        there = [w for w in self.watches if not w.left]
        if not there or min(w.still for w in there) < self.patience:
            return None
        marks = {w.beat.mark for w in there}
        behind = [w for w in there if w.beat.mark == min(marks)]
        if len(marks) == 1:
            if not any(w.beat.waits for w in there):
                return None  # a long start, or work of all: nobody waits
            behind = [w for w in there if not w.beat.waits] or there
        how = f"made no progress for {self.patience:.0f} s (engine.timeout)"
        return self._accuse(behind, how)

    def _accuse(self, lost: Sequence[Watch], how: str) -> str:
        self.accused = hosts_of(lost)
        return of_lost(lost, how)


def hosts_of(watches: Sequence[Watch]) -> tuple[str, ...]:
    """Return the hosts of ranks, each once, as far as they ever said where they are."""
    return tuple(dict.fromkeys(w.beat.host for w in watches if w.beat.pid))


def of_lost(lost: Sequence[Watch], how: str) -> str:
    """Return the sentence about ranks that were lost without a farewell."""
    names = [f"{w.beat.name()}, last at {_place(w.beat)}," for w in lost[:_NAMED]]
    names += [f"{len(lost) - _NAMED} more"] if len(lost) > _NAMED else []
    return f"{' and '.join(names)} {how}{_ADVICE}"


def of_left(beat: Beat) -> str:
    """Return the sentence about a rank that left with an error."""
    return f"{beat.name()} left at {_place(beat)}: {beat.farewell}{_ADVICE}"


def _place(beat: Beat) -> str:
    return f"{beat.doing} ({beat.where})" if beat.where else beat.doing


_ADVICE = "; the checkpoints are intact: the same command goes on from the last one"
