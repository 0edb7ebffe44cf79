"""How runs fare: state, progress, speed, and where their jobs are.

Everything beside the state of jobs is read from the run directory, so that it works without
accounting, without Slurm, and long after the queue has forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from t2i_hpc.cluster.finding import find_jobs
from t2i_hpc.cluster.jobs import read_jobs
from t2i_hpc.cluster.states import ask_states
from t2i_hpc.common.sessions import DONE, FAILED, LOST, Session, read_sessions
from t2i_hpc.reporting.tails import last_error, last_row
from t2i_hpc.reporting.verdicts import RUNNING, WAITING, Evidence, judge
from t2i_hpc.reporting.words import measured


@dataclass(frozen=True)
class RunState:
    """One run at this moment.

    Attributes:
        run: the run directory.
        state: new, waiting, running, unknown, stopped, done, failed or lost.
        message: why it waits, or what was said when it ended.
        images: seen so far: at the newest checkpoint, or now where it runs.
        saved: at the newest checkpoint, None for none.
        goal: images to train on, None where unknown.
        share: part of the training that is done, 0 to 1; None where unknown.
        speed: images a second, over the last interval that was logged.
        remaining: seconds to the end at that speed, of a run that runs.
        sessions: all starts of it, oldest first.
        job: the last job of its training, "" for none.
        nodes: of the job or of the last session.
        log: file of the job's output, "" for none.
        score: the last one, with its N.
        beside: jobs of other tasks that are not over, e.g. "3 evaluate waiting".
    """

    run: Path
    state: str
    message: str
    images: int
    saved: int | None
    goal: int | None
    share: float | None
    speed: float | None
    remaining: float | None
    sessions: tuple[Session, ...]
    job: str
    nodes: str
    log: str
    score: str
    beside: tuple[str, ...]

    @property
    def restarts(self) -> int:
        """Sessions after the first."""
        return max(0, len(self.sessions) - 1)


def read_states(runs: Sequence[Path]) -> list[RunState]:
    """Return how some runs fare; Slurm is asked once for all of them."""
    answer = ask_states(job for run in runs for job in find_jobs(run))
    silence = answer.unanswered, answer.reason
    return [
        _state(Evidence(run, read_jobs(run), answer.states, read_sessions(run), *silence))
        for run in runs
    ]


def _state(known: Evidence) -> RunState:
    state, message = judge(known)
    log = _log(known)
    if not message and log and state in (FAILED, LOST):
        message = last_error(Path(log))
    row = last_row(known.run / "metrics.jsonl")
    seen = int(row.get("images", 0)) if state == RUNNING else 0
    images = max(seen, known.saved or 0)
    goal, share = _goal(known.run, images, float(row.get("seconds", 0.0)))
    speed = row.get("images_per_second")
    return RunState(
        run=known.run,
        state=state,
        message=message,
        images=images,
        saved=known.saved,
        goal=goal,
        share=share if state != DONE else 1.0,
        speed=None if speed is None else float(speed),
        remaining=_remaining(images, share, speed) if state == RUNNING else None,
        sessions=tuple(known.sessions),
        job=_job(known),
        nodes=_nodes(known),
        log=log,
        score=_score(last_row(known.run / "scores.jsonl")),
        beside=_beside(known),
    )


def _goal(run: Path, images: int, seconds: float) -> tuple[int | None, float | None]:
    """Return the images wanted and the share done, by whichever end comes first."""
    try:
        engine: Any = OmegaConf.select(OmegaConf.load(run / "config.yaml"), "engine")
        goal, minutes = int(engine.images), engine.get("minutes")
    except Exception:  # not begun; a damaged file makes the parser raise anything
        return None, None
    share = images / goal
    if minutes is not None:
        share = max(share, seconds / (60 * float(minutes)))
    return goal, min(1.0, share)


def _remaining(images: int, share: float | None, speed: float | None) -> float | None:
    """Return the seconds left if the rest goes as quickly as the last interval."""
    return images / speed * (1 - share) / share if share and speed else None


def _job(known: Evidence) -> str:
    """Return the job that the run is or was; one that waits to resume it comes after it."""
    living = sorted(known.living, key=lambda state: state.runs)
    submitted = [record.job for record in known.training]
    begun = [session.job for session in known.sessions]
    return next((jobs[-1] for jobs in ([s.job for s in living], submitted, begun) if jobs), "")


def _log(known: Evidence) -> str:
    job = _job(known)
    own = [record.log for record in known.training if record.job == job]
    return next((logs[-1] for logs in (own, [r.log for r in known.training]) if logs), "")


def _nodes(known: Evidence) -> str:
    nodes = [state.nodes for state in known.living if state.nodes]
    if nodes:
        return ",".join(dict.fromkeys(nodes))
    return ",".join(known.sessions[-1].hosts) if known.sessions else ""


def _beside(known: Evidence) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for record in known.jobs:
        if record in known.training:
            continue
        for state in known.living_of([record.job]):
            name = f"{record.task} {RUNNING if state.runs else WAITING}"
            counts[name] = counts.get(name, 0) + 1
    return tuple(f"{count} {name}" for name, count in counts.items())


def _score(row: Mapping[str, Any]) -> str:
    if not {"metric", "value", "n", "images"} <= row.keys():
        return ""
    value = measured(row["metric"], row["value"])
    return f"{row['metric']} {value} (N {row['n']:,}) after {row['images']:,} images"
