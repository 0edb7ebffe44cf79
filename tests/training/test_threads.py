"""A rank computes on its share of the cores, or on one thread where that is quicker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training import threads
from t2i_hpc.training.threads import keep_threads, settle_threads
from t2i_hpc.training.world import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def share() -> Iterator[int]:
    """Four threads, as a rank of a node with cores has before it measures."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


def session(
    run: Path, several: float, monkeypatch: pytest.MonkeyPatch, config: EngineConfig | None = None
) -> tuple[int, list[str], int]:
    """Begin a session where steps on one thread take a second and on more take `several`.

    Returns its threads, what it said, and how often it measured.
    """
    measured: list[int] = []

    def taken(images: int) -> float:
        assert images == 16  # work for all four
        measured.append(torch.get_num_threads())
        return 1.0 if torch.get_num_threads() == 1 else several

    monkeypatch.setattr(threads, "_seconds_a_step", taken)
    torch.set_num_threads(4)
    said: list[str] = []
    settle_threads(run, config or EngineConfig(), ALONE, said.append)
    keep_threads(run, config or EngineConfig(), ALONE)
    return torch.get_num_threads(), said, len(measured)


def test_several_threads_that_are_slower_are_left_unused_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, said, _ = session(tmp_path, 1.5, monkeypatch)
    assert taken == 1
    assert said == [
        "one CPU thread a rank: 4 were slower just now, as next to other work; "
        "engine.threads=4 takes them all the same"
    ]


@pytest.mark.parametrize(("first", "then"), [(0.4, 1.5), (1.5, 0.4)])
def test_a_run_keeps_its_number(
    tmp_path: Path, first: float, then: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, _, measured = session(tmp_path, first, monkeypatch)
    assert measured == 2
    assert session(tmp_path, then, monkeypatch) == (taken, [], 0)


def test_a_run_of_other_ranks_measures_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "threads.json").write_text('{"ranks": 2, "threads": 1}')
    assert session(tmp_path, 0.4, monkeypatch)[::2] == (4, 2)


def test_a_number_that_is_named_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert session(tmp_path, 9.0, monkeypatch, EngineConfig(threads=4)) == (4, [], 0)
    assert not list(tmp_path.iterdir())


def test_measuring_ends() -> None:
    assert 0 < threads._seconds_a_step(8) < 60
