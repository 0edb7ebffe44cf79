"""Whether a run waits, runs, or how it ended: Slurm's word and the run's own files, weighed.

Slurm is believed about jobs that are not over; a session's own end about all others. Slurm's
word about an ended job counts where no session of it left one.

How runs fare: state, progress, speed, and where their jobs are.

Everything beside the state of jobs is read from the run directory, so that it works without
accounting, without Slurm, and long after the queue has forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from t2i_hpc.cluster.cancelling import find_jobs
from t2i_hpc.cluster.jobs import JobRecord, read_jobs
from t2i_hpc.cluster.slurm.client import has_client
from t2i_hpc.cluster.states import JobState, ask_states
from t2i_hpc.reporting.run_record import last_error, last_row
from t2i_hpc.reporting.score_groups import measured
from t2i_hpc.runs.layout import newest_images
from t2i_hpc.runs.sessions import DONE, FAILED, LOST, STOPPED, Session, is_held, read_sessions

NEW, WAITING, RUNNING, UNKNOWN = "new", "waiting", "running", "unknown"
_TRAINING = ("train", "pretrain")


@dataclass(frozen=True)
class Evidence:
    """What there is to judge a run by.

    Attributes:
        run: the run directory.
        jobs: all that were submitted for it, oldest first.
        states: by the number of a job, of the jobs that Slurm knows.
        sessions: all starts of the run, oldest first.
        unanswered: jobs of which nobody knows whether they live.
        silence: why nobody knows.
    """

    run: Path
    jobs: Sequence[JobRecord]
    states: Mapping[str, JobState]
    sessions: Sequence[Session]
    unanswered: Collection[str] = ()
    silence: str = ""

    @property
    def training(self) -> list[JobRecord]:
        """The jobs that the run itself is; of a folder that is no run, all."""
        own = [record for record in self.jobs if record.task in _TRAINING]
        return own if own or self.sessions else list(self.jobs)

    @property
    def living(self) -> list[JobState]:
        """The run's own jobs that are not over; one submitted by hand is in its sessions alone."""
        numbers = [record.job for record in self.training]
        numbers += [session.job for session in self.sessions[-1:]]
        return self.living_of(dict.fromkeys(numbers))

    def living_of(self, jobs: Iterable[str]) -> list[JobState]:
        """Return the states of some jobs, of those that are not over."""
        found = [self.states[job] for job in jobs if job in self.states]
        return [state for state in found if state.lives]

    @property
    def saved(self) -> int | None:
        """Images seen at the newest checkpoint; None without one."""
        return newest_images(self.run)


def judge(known: Evidence) -> tuple[str, str]:
    """Return the state of a run, one of :class:`RunState`'s words, and what is said of it."""
    last = known.sessions[-1] if known.sessions else None
    unfinished = last is None or last.outcome is None
    if any(state.runs for state in known.living) or (unfinished and is_held(known.run)):
        return RUNNING, ""
    if known.living:
        return WAITING, known.living[-1].reason
    if job := _unanswered_job(known, last):
        return UNKNOWN, f"nobody knows whether job {job} still waits or runs: {known.silence}"
    return _over(known, last)


def _unanswered_job(known: Evidence, last: Session | None) -> str:
    """Return the job that a run may still be waiting or running as; "" where files tell enough."""
    newest = known.training[-1] if known.training else None
    if newest and (last is None or _came_after(newest, last)):
        job = newest.job
    elif last is None or last.outcome in (DONE, FAILED):
        return ""
    elif last.outcome is not None and not has_client("squeue"):
        return ""  # a run that was copied here: what it said at its end is all there is
    else:
        job = last.job
    return job if job in known.unanswered else ""


def _over(known: Evidence, last: Session | None) -> tuple[str, str]:
    """Judge a run that neither waits nor runs."""
    newest = known.training[-1] if known.training else None
    if newest and (last is None or _came_after(newest, last)):
        return _of_job(newest, known.states.get(newest.job))
    if last is None:
        return (NEW, "") if known.saved is None else (STOPPED, "")
    if last.outcome is None:
        return _cut_off(last, known.states.get(last.job))
    return last.outcome, last.message


def _came_after(record: JobRecord, last: Session) -> bool:
    """Whether a job is another one than the last session's, and a later one."""
    return record.job != last.job and record.submitted >= last.began


def _of_job(record: JobRecord, state: JobState | None) -> tuple[str, str]:
    """Judge by a job that left no session."""
    if state is None:
        return LOST, f"job {record.job} is gone, and nobody knows how it ended"
    if state.word == "COMPLETED":
        return DONE, ""
    if state.word == "CANCELLED":
        return STOPPED, f"job {state.job} was cancelled"
    if not Path(record.log).exists():
        return FAILED, (
            f"job {state.job} ended as {state.word} without a line in {record.log}: probably its "
            "node does not see that folder (/tmp and other local disks are not shared)"
        )
    return FAILED, last_error(Path(record.log)) or f"job {state.job} ended as {state.word}"


def _cut_off(session: Session, state: JobState | None) -> tuple[str, str]:
    if state is not None and state.word == "CANCELLED":
        return STOPPED, f"job {state.job} was cancelled before it had saved"
    word = f" (job {state.job}: {state.word})" if state is not None else ""
    hosts = ", ".join(session.hosts)
    return LOST, f"cut off on {hosts} without a word{word}: killed, or a node went down"


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
