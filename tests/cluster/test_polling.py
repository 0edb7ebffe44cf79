"""How often Slurm is asked about jobs that a person waits for."""

from __future__ import annotations

import pytest

from t2i_hpc.cluster.slurm import client as polling
from t2i_hpc.cluster.slurm.client import Polling


class Clock:
    """A time that only a test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        """Return it."""
        return self.now


def intervals(clock: Clock, asked: Polling, news: list[bool]) -> list[float]:
    """Return the seconds until the next question, after each of some answers."""
    found = []
    for new in news:
        asked.asked(news=new)
        before = clock.now
        while not asked.is_due():
            clock.now += 0.5
        found.append(clock.now - before)
    return found


def test_questions_begin_at_10_seconds_and_grow_to_60(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites lock accounts that ask more often; a minute is as long as a person may wait."""
    clock, asked = Clock(), Polling()
    monkeypatch.setattr(polling, "time", clock)
    assert asked.is_due()
    assert intervals(clock, asked, [True]) == [10]
    grown = intervals(clock, asked, [False] * 8)
    assert grown == sorted(grown)
    assert (grown[0], grown[-1]) == (15, 60)
    assert intervals(clock, asked, [True, False]) == [10, 15]


def test_a_day_of_waiting_is_few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = Clock(), Polling()
    monkeypatch.setattr(polling, "time", clock)
    assert sum(intervals(clock, asked, [False] * 1440)) > 23.8 * 3600
