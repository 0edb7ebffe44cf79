"""Trainings on the lab that are disturbed again and again, two at a time.

More at once would only wait for each other on a small machine; fewer would leave it idle, since
Slurm starts a requeued job ten seconds later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.cluster.jobs import read_jobs
from t2i_hpc.common.sessions import read_sessions
from tests.slurm.jobs import steps_of, wait_until
from tests.slurm.lab import Lab
from tests.support.preloaded import Nursery

Disturb = Callable[[Lab, str], None]
AT_ONCE, AT_WORK = 2, 2  # trainings; steps


@dataclass
class Story:
    """One training: how it is submitted, and what happens to it as soon as it works again.

    Attributes:
        runs: the folder of its run.
        submit: puts it into that folder and returns the job's number.
        disturbances: one a session; the session after the last one ends the training.
    """

    runs: Path
    submit: Callable[[Path], str]
    disturbances: Sequence[Disturb] = ()
    job: str = ""
    _disturbed: int = 0
    _first_step: int | None = None

    def goes_on(self, lab: Lab) -> bool:
        """Submit or disturb it where it is time to; return False when none of its jobs lives."""
        self.job = self.job or self.submit(self.runs)
        for run in (path.parent for path in self.runs.glob("*/config.yaml")):
            sessions = read_sessions(run)
            if self._disturbed < min(len(self.disturbances), len(sessions)) and self._works():
                self.disturbances[self._disturbed](lab, sessions[-1].job)
                self._disturbed, self._first_step = self._disturbed + 1, None
        jobs = {self.job, *(each.job for path in self.runs.glob("*") for each in read_jobs(path))}
        return bool(lab.run("squeue", "-h", "-o", "%i", "-j", ",".join(jobs), check=False))

    def _works(self) -> bool:
        """Whether this session has made some steps."""
        steps = steps_of(self.runs)
        self._first_step = steps if self._first_step is None else self._first_step
        return steps >= self._first_step + AT_WORK


def tell(lab: Lab, *stories: Story) -> None:
    """Let all stories come to their end; whether it is the right one, their tests say."""
    waiting, told = list(stories), list[Story]()

    def are_over() -> bool:
        while waiting and len(told) < AT_ONCE:
            told.append(waiting.pop(0))
        told[:] = [story for story in told if story.goes_on(lab)]
        return not (waiting or told)

    wait_until(are_over, "the end of all trainings")


def train_here(home: Nursery, ranks: int, runs: Path, *words: str) -> None:
    """Do the same training on this machine, undisturbed."""
    runs.mkdir()
    started = home.train_world(ranks, [f"runs={runs}", *words], runs)
    codes = [rank.wait() for rank in started]
    assert not any(codes), started[0].log.read_text()
