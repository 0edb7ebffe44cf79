"""Which ranks are lost or hung: found once a second from what each rank reports of itself.

Time is counted in ticks of the monitor's own clock, a second each while it runs. So a job that
was suspended as a whole, or a monitor that was held up, blames nobody when it resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SILENCE_TICKS = 10
"""Ticks without a report after which a process counts as stopped or its node as gone."""

DIED = "died"
SILENT = f"gave no sign of life for {SILENCE_TICKS} s (stopped, or its node is gone)"

_EXIT_TICKS = 3  # time for the others to exit for the same reason by themselves
_NAMED = 4
_ADVICE = "; the checkpoints are intact: the same command resumes from the last one"


@dataclass(frozen=True)
class RankReport:
    """What a rank says of itself every second.

    Attributes:
        rank, host, pid: who it is.
        stages: number of stages it began so far; all ranks begin the same ones in one order.
        stage: the last of these, e.g. "step 12, phase generator".
        where: file and line of the project where its main thread is; "" where unknown.
        waits: whether its main thread is inside a collective operation.
        exit_reason: None while it runs; "" when it is done; else the error it exits for.
        queued, done: marks in its device's queue and those that the device has passed; all ranks
            leave the same ones in one order, and none on a CPU.
        device_stage: the stage of the last mark that was passed.
    """

    rank: int
    host: str = "an unknown host"
    pid: int = 0
    stages: int = 0
    stage: str = "starting"
    where: str = ""
    waits: bool = False
    exit_reason: str | None = None
    queued: int = 0
    done: int = 0
    device_stage: str = ""

    @property
    def device_works(self) -> bool:
        """Whether its device is not yet where its host is."""
        return self.done < self.queued

    def name(self) -> str:
        """Return rank, host and process in words."""
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    def place(self) -> str:
        """Return the stage, with file and line where known, and the device's if that is behind."""
        place = f"{self.stage} ({self.where})" if self.where else self.stage
        return f"{place}, its device at {self.device_place()}" if self.device_works else place

    def device_place(self) -> str:
        """Return where the device is."""
        return self.device_stage or "its start"


@dataclass
class RankState:
    """What the monitor knows of a rank; counts are of ticks."""

    report: RankReport
    silent: int = 0
    stalled: int = 0
    since_exit: int = 0
    disconnected: bool = False

    def update(self, report: RankReport) -> None:
        """Take note of a report."""
        self.silent = 0
        if (report.stages, report.done) != (self.report.stages, self.report.done):
            self.stalled = 0
        self.report = report

    def tick(self) -> None:
        """Let a second pass."""
        self.silent += 1
        self.stalled += 1
        self.since_exit += self.exits

    @property
    def exits(self) -> bool:
        """Whether the rank said that it exits."""
        return self.report.exit_reason is not None


@dataclass
class HeartbeatMonitor:
    """Finds lost and hung ranks.

    Attributes:
        size: number of ranks.
        timeout: ticks without any progress after which a rank that holds up others is hung.
        lost_hosts: the hosts of the ranks that were found lost, each once.
    """

    size: int
    timeout: float
    ranks: list[RankState] = field(init=False)
    lost_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.ranks = [RankState(RankReport(rank)) for rank in range(self.size)]

    def tick(self) -> str | None:
        """Let a second pass; return a sentence about lost ranks, None while all is well."""
        for state in self.ranks:
            state.tick()
        return self._died() or self._silent() or self._failed() or self._hung()

    def all_exited(self, but: int) -> bool:
        """Whether all ranks except one said that they exit, or are gone."""
        return all(r.exits or r.disconnected for r in self.ranks if r.report.rank != but)

    def _died(self) -> str | None:
        died = [r for r in self.ranks if r.disconnected and not r.exits]
        return self._lost(died, DIED) if died else None

    def _silent(self) -> str | None:
        silent = [r for r in self.ranks if r.silent > SILENCE_TICKS and not r.exits]
        return self._lost(silent, SILENT) if silent else None

    def _failed(self) -> str | None:
        for state in self.ranks:
            if state.report.exit_reason and state.since_exit > _EXIT_TICKS:
                self.lost_hosts = _hosts_of([state])
                return failed_rank(state.report)
        return None

    def _hung(self) -> str | None:
        there = [r for r in self.ranks if not r.exits]
        if not there or min(r.stalled for r in there) < self.timeout:
            return None
        if any(r.report.device_works for r in there):
            return self._hung_on_device(there)
        stages = {r.report.stages for r in there}
        behind = [r for r in there if r.report.stages == min(stages)]
        if len(stages) == 1:
            if not any(r.report.waits for r in there):
                return None  # a long start, or work of all: nobody waits
            behind = [r for r in there if not r.report.waits] or there
        return self._lost(behind, self._no_progress())

    def _hung_on_device(self, there: Sequence[RankState]) -> str:
        """Find out whose device the others wait for; where their hosts are says nothing."""
        least = min(r.report.done for r in there)
        behind = [r for r in there if r.report.done == least]
        # The device of a rank whose host gives it nothing to do waits for that host.
        behind = [r for r in behind if not r.report.device_works] or behind
        if len(behind) < len(there) or len(there) == 1:
            return self._lost(behind, self._no_progress())
        first = behind[0].report
        return (
            f"the devices of all {len(there)} ranks {self._no_progress()}, all at "
            f"{first.device_place()}: one collective does not end, and no rank stands out; check "
            f"the network between the GPUs (NCCL_DEBUG=INFO says more){_ADVICE}"
        )

    def _no_progress(self) -> str:
        return f"made no progress for {self.timeout:.0f} s (engine.timeout)"

    def _lost(self, lost: Sequence[RankState], how: str) -> str:
        self.lost_hosts = _hosts_of(lost)
        return lost_ranks([state.report for state in lost], how)


def lost_ranks(lost: Sequence[RankReport], how: str) -> str:
    """Return the sentence about ranks that were lost silently."""
    names = [f"{report.name()}, last at {report.place()}," for report in lost[:_NAMED]]
    names += [f"{len(lost) - _NAMED} more"] if len(lost) > _NAMED else []
    return f"{' and '.join(names)} {how}{_ADVICE}"


def failed_rank(report: RankReport) -> str:
    """Return the sentence about a rank that exits with an error."""
    return f"{report.name()} exited at {report.place()}: {report.exit_reason}{_ADVICE}"


def _hosts_of(states: Sequence[RankState]) -> tuple[str, ...]:
    """Return the hosts of ranks, each once, as far as they ever said where they are."""
    return tuple(dict.fromkeys(s.report.host for s in states if s.report.pid))
