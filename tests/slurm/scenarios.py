"""Scenarios: trainings on the lab, interrupted again and again, two at a time.

More at once would only wait for each other on a small machine; fewer would leave it unused, since
Slurm starts a requeued job ten seconds later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import read_jobs
from t2i_hpc.runs.sessions import read_sessions
from tests.slurm.jobs import BRIEFLY, ENDED, state_of, steps_of, wait_until
from tests.slurm.lab import Lab
from tests.support.preloaded import Nursery

Interruption = Callable[[Lab, str], None]
AT_ONCE, AT_WORK = 2, 2  # trainings; steps
_TAIL = 3000  # characters


@dataclass
class Scenario:
    """One training: how it is submitted, and what happens to it as soon as it works again.

    Attributes:
        runs: the folder of its run.
        submit: puts it into that folder and returns the job's number.
        interruptions: one a session; the session after the last one ends the training.
        job: its first job, "" before that is submitted.
        interrupted: how many of the interruptions were.
    """

    runs: Path
    submit: Callable[[Path], str]
    interruptions: Sequence[Interruption] = ()
    job: str = ""
    interrupted: int = 0
    _first_step: int | None = None
    _alive: float = field(default_factory=time.monotonic)

    def advance(self, lab: Lab) -> bool:
        """Submit or interrupt it where it is time to; return False when none of its jobs lives."""
        if not self.job:
            self.job, self._alive = self.submit(self.runs), time.monotonic()
        for run in (path.parent for path in self.runs.glob("*/config.yaml")):
            sessions = read_sessions(run)
            if self.interrupted < min(len(self.interruptions), len(sessions)) and self._works():
                self.interruptions[self.interrupted](lab, sessions[-1].job)
                self.interrupted, self._first_step = self.interrupted + 1, None
        return self._lives(lab)

    def account(self) -> str:
        """Say how far it is, and how its jobs' logs end."""
        logs = sorted(self.runs.glob("*/jobs/*_log.out"))
        tails = [f"{path}:\n{path.read_text(errors='replace')[-_TAIL:]}" for path in logs]
        return "\n".join([f"{self.runs.name}, interrupted {self.interrupted} times", *tails])

    def _lives(self, lab: Lab) -> bool:
        """Whether one of its jobs waits or runs; one that is requeued may look ended for a moment.

        A queue that gives no answer is asked again.
        """
        recorded = [each.job for path in self.runs.glob("*") for each in read_jobs(path)]
        states = [state_of(lab, job) for job in dict.fromkeys((self.job, *recorded))]
        now = time.monotonic()
        if not set(states) <= ENDED:
            self._alive = now
        if states[-1] in ("COMPLETED", "CANCELLED") and set(states) <= ENDED:
            return False
        return now - self._alive < BRIEFLY

    def _works(self) -> bool:
        """Whether this session has made some steps."""
        steps = steps_of(self.runs)
        self._first_step = steps if self._first_step is None else self._first_step
        return steps >= self._first_step + AT_WORK


def run_scenarios(lab: Lab, *scenarios: Scenario) -> None:
    """Run all scenarios to their end; their tests say whether it is the right one."""
    waiting, active = list(scenarios), list[Scenario]()

    def is_news() -> bool:
        """Poll all; return whether one was interrupted or is over."""
        before = sum(each.interrupted for each in active)
        living = [scenario for scenario in active if scenario.advance(lab)]
        news = len(living) < len(active) or sum(each.interrupted for each in active) > before
        active[:] = living
        return news

    while waiting or active:
        while waiting and len(active) < AT_ONCE:
            active.append(waiting.pop(0))
        names = " and ".join(scenario.runs.name for scenario in active)
        try:
            wait_until(is_news, f"news of {names}")
        except pytest.fail.Exception as failure:
            pytest.fail("\n".join([str(failure), *(each.account() for each in active)]))


def train_here(home: Nursery, ranks: int, runs: Path, *arguments: str) -> None:
    """Do the same training on this machine, uninterrupted."""
    runs.mkdir()
    started = home.train_world(ranks, [f"runs={runs}", *arguments], runs)
    codes = [rank.wait() for rank in started]
    assert not any(codes), started[0].log.read_text()
