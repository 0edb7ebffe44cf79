"""kill -9 at random instants, during steps and saves: a run resumes as if nothing had happened."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file

from t2i_hpc.common.errors import LOST_RANK
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.runs.layout import list_checkpoints
from tests.distributed.test_worlds import assert_near
from tests.support.preloaded import Nursery, Rank, slow_saves
from tests.support.training import TINY, losses_of, only_run

BATCH, EVERY = 4, 12  # images of a step, and between checkpoints
STEPS = 45
DEEPSPEED = ("engine=deepspeed", "engine.zero_stage=1")
RARELY = "engine.samples_every_images=100000"


@dataclass(frozen=True)
class Case:
    """A strategy in a world, and how many kills it goes through, some of one rank alone."""

    arguments: tuple[str, ...]
    world: int
    of_all: int
    of_one: int = 0


CASES = {
    "ddp-1": Case((), 1, 5),
    "ddp-2": Case((), 2, 2, 3),
    "deepspeed-1": Case(DEEPSPEED, 1, 3),
    "deepspeed-2": Case(DEEPSPEED, 2, 2, 1),
}


@dataclass
class Runs:
    """Sessions of one run, in a folder of its own."""

    home: Nursery
    shards: Path
    folder: Path
    arguments: Sequence[str]
    told: list[str] = field(default_factory=list)

    def start(self, world: int, images: int, *, slow: bool = False) -> list[Rank]:
        """Start a session of all ranks."""
        self.folder.mkdir(exist_ok=True)
        own = (f"engine.images={images}", f"engine.checkpoint.every_images={EVERY}", RARELY)
        arguments = [
            f"data.path={self.shards}",
            f"runs={self.folder}",
            *TINY,
            *own,
            *self.arguments,
        ]
        return self.home.train_world(world, arguments, self.folder, {0: slow_saves} if slow else {})

    def finish(self, world: int, images: int) -> Path:
        """Run a session to its end; return the run."""
        for rank in self.start(world, images):
            assert rank.wait() == 0, rank.log.read_text()
        return only_run(self.folder)

    def kill(self, world: int, victims: Sequence[int], draw: random.Random) -> None:
        """Run a session and kill some ranks at a random instant; wait for those that are left.

        Every second time this is during a save, which lasts longer then.
        """
        in_save = len(self.told) % 2 == 1
        began, ranks = time.time_ns(), self.start(world, STEPS * BATCH, slow=in_save)
        if in_save:
            while not self._unfinished(began):
                self._look(ranks)
            time.sleep(draw.uniform(0, 0.15))
        else:
            wanted = self._wait_for_a_step(ranks) + draw.randrange(6)
            while self._steps() < wanted:
                self._look(ranks)
            time.sleep(draw.uniform(0, 0.1))
        steps, saving = self._steps(), self._unfinished(began)
        for victim in victims:
            ranks[victim].send(signal.SIGKILL)
        for number, rank in enumerate(ranks):
            expected = -signal.SIGKILL if number in victims else LOST_RANK
            assert rank.wait() == expected, rank.log.read_text()
        self.told.append(f"{steps}{' while saving' if saving else ''}")

    def _wait_for_a_step(self, ranks: Sequence[Rank]) -> int:
        """Wait until this session made a step; return how many the run has made."""
        before = self._stamp()
        while self._stamp() == before or not self._steps():
            self._look(ranks)
        return self._steps()

    def _look(self, ranks: Sequence[Rank]) -> None:
        for rank in ranks:
            assert rank.poll() is None, rank.log.read_text()
        time.sleep(0.002)

    def _stamp(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in self.folder.glob("*/metrics.jsonl")]

    def _steps(self) -> int:
        rows = [read_json_lines(path) for path in self.folder.glob("*/metrics.jsonl")]
        return int(rows[0][-1]["step"]) if rows and rows[0] else 0

    def _unfinished(self, began: int) -> bool:
        """Whether a checkpoint is being written by a session that began at that time in ns."""
        for path in self.folder.glob("*/checkpoints/.*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns > began:
                    return True
        return False


@pytest.mark.parametrize("name", CASES)
def test_killed_runs_end_with_the_weights_of_an_uninterrupted_one(
    name: str, home: Nursery, shards: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    uninterrupted = Runs(home, shards, tmp_path / "uninterrupted", case.arguments)
    straight = uninterrupted.finish(case.world, STEPS * BATCH)
    runs, draw = Runs(home, shards, tmp_path / "killed", case.arguments), random.Random(name)
    everyone = range(case.world)
    kinds = [None] * case.of_all + [draw.choice(everyone) for _ in range(case.of_one)]
    for victim in draw.sample(kinds, len(kinds)):
        runs.kill(case.world, everyone if victim is None else [victim], draw)
    run = runs.finish(case.world, STEPS * BATCH)
    sys.stdout.write(f"\n{name}: survived {len(runs.told)} kills, at step {', '.join(runs.told)}\n")
    assert len(runs.told) == case.of_all + case.of_one
    assert any("saving" in told for told in runs.told)
    assert list_checkpoints(run)[-1] == list_checkpoints(straight)[-1] == STEPS * BATCH
    for file in ("weights.safetensors", "optimizers.safetensors"):
        ours, theirs = (load_file(newest(path) / file) for path in (run, straight))
        assert ours.keys() == theirs.keys()
        assert all(bool((ours[key] == theirs[key]).all()) for key in ours), file
    assert losses_of(run) == losses_of(straight)


def newest(run: Path) -> Path:
    return run / "checkpoints" / f"{STEPS * BATCH:010d}"


def test_a_killed_run_of_two_ranks_resumes_with_one(
    home: Nursery, shards: Path, tmp_path: Path
) -> None:
    straight = Runs(home, shards, tmp_path / "straight", ()).finish(2, 24)
    runs = Runs(home, shards, tmp_path / "killed", ())
    runs.kill(2, (0, 1), random.Random(1))
    assert list_checkpoints(only_run(runs.folder))[-1] < 24
    assert_near(losses_of(straight), losses_of(runs.finish(1, 24)))
