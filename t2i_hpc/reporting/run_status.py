"""Run status: whether a run waits, runs, or how it ended; its progress; what to do next.

Slurm is believed about jobs that are not over; a session's own end about all others. Slurm's
word about an ended job counts where no session of it left one. All else is read from the run
directory, so that it works without accounting, without Slurm, and long after the queue has
forgotten.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from t2i_hpc.cluster.jobs import JobRecord, find_jobs, read_jobs
from t2i_hpc.cluster.slurm.client import JobState, ask_states, has_client
from t2i_hpc.common.terminal import aligned
from t2i_hpc.evaluation.scores import measured
from t2i_hpc.reporting.run_record import last_error, last_row
from t2i_hpc.runs.layout import newest_images
from t2i_hpc.runs.sessions import DONE, FAILED, LOST, STOPPED, Session, is_held, read_sessions

NEW, WAITING, RUNNING, UNKNOWN = "new", "waiting", "running", "unknown"
_TRAINING = ("train", "pretrain")
_TITLES = ("run", "state", "done", "images", "img/s", "ETA", "restarts", "job", "nodes", "score")
_NUMBERS = ("done", "images", "img/s", "ETA", "restarts")
_SESSIONS_SHOWN = 5
_ENCODER = "text_encoder.safetensors"


@dataclass(frozen=True)
class RunState:
    """One run at this moment.

    Attributes:
        run: the run directory.
        state: new, waiting, running, unknown, stopped, done, failed or lost.
        message: why it waits, or how it ended.
        images: seen so far: at the newest checkpoint, or now where it runs.
        saved: at the newest checkpoint, None for none.
        goal: images to train on, None where unknown.
        share: how much of the training is done, 0 to 1; None where unknown.
        speed: images a second, over the last interval that was logged.
        remaining: seconds to the end at that speed (ETA), of a run that runs.
        sessions: all starts of it, oldest first.
        job: the last job of its training, "" for none.
        nodes: of the job or of the last session.
        log: file of the job's output, "" for none.
        score: the last one, with its N.
        other_jobs: jobs of other tasks that are not over, e.g. "3 evaluate waiting".
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
    other_jobs: tuple[str, ...]

    @property
    def restarts(self) -> int:
        """Sessions after the first."""
        return max(0, len(self.sessions) - 1)


def read_states(runs: Sequence[Path]) -> list[RunState]:
    """Return the status of runs; Slurm is asked once for all of them."""
    answer = ask_states(job for run in runs for job in find_jobs(run))
    silence = answer.unanswered, answer.reason
    return [
        _state(Evidence(run, read_jobs(run), answer.states, read_sessions(run), *silence))
        for run in runs
    ]


def status_table(states: Sequence[RunState]) -> list[str]:
    """Return a line for each run under their titles, and the messages below."""
    columns = list(zip(_TITLES, *(_row(state) for state in states), strict=True))
    used = [column for column in columns if any(column[1:])]
    right = [place for place, column in enumerate(used) if column[0] in _NUMBERS]
    notes = [f"{state.run.name}: {state.message}" for state in states if state.message]
    lines = aligned(list(zip(*used, strict=True)), right)
    return [*lines, *([""] if notes else []), *notes]


def status_details(state: RunState) -> list[str]:
    """Return all about one run, and what to do next."""
    goal = "" if state.goal is None else f" of {state.goal:,}"
    speed = "" if state.speed is None else f" at {state.speed:,.1f} img/s"
    eta = "" if state.remaining is None else f", ETA {duration(state.remaining)}"
    saved = "none" if state.saved is None else f"{state.saved:,} images"
    lines = {
        "run": str(state.run),
        "state": f"{state.state}: {state.message}" if state.message else state.state,
        "progress": f"{_share(state)} {state.images:,}{goal} images{speed}{eta}".strip(),
        "checkpoint": saved,
        "score": state.score,
        "job": state.job,
        "nodes": state.nodes,
        "other jobs": ", ".join(state.other_jobs),
        "log": state.log,
        "restarts": str(state.restarts),
        **_session_lines(state),
        "next": advice(state),
    }
    width = max(map(len, lines))
    return [f"{name.ljust(width)}  {text}" for name, text in lines.items() if text]


def status_json(states: Sequence[RunState]) -> str:
    """Return runs as a JSON list, one object each."""
    rows = [
        {**dataclasses.asdict(state), "run": str(state.run), "restarts": state.restarts}
        for state in states
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False)


def advice(state: RunState) -> str:
    """Return what to do next."""
    point = (
        f"from the checkpoint of {state.saved:,} images" if state.saved else "from the beginning"
    )
    again = f"run the same command again: it resumes {point}"
    after = {
        NEW: "start it: python -m t2i_hpc.launch …",
        WAITING: f"wait, or cancel it: python -m t2i_hpc.cancel {state.run}",
        RUNNING: f"tail -f {state.log}" if state.log else f"touch {state.run}/stop saves and ends",
        UNKNOWN: "ask again when Slurm answers (scontrol ping), on a login node; start nothing yet",
        STOPPED: again,
        DONE: f"python -m t2i_hpc.evaluate run={state.run}",
        FAILED: f"fix the error above ({state.log or 'its output'} has more), then {again}",
        LOST: again,
    }
    if state.state == DONE and (state.run / _ENCODER).exists():
        return f"train with it: system.text_encoder.weights={state.run / _ENCODER}"
    if state.state == DONE and state.score:
        return f"python -m t2i_hpc.report run={state.run}"
    return after[state.state]


def duration(seconds: float) -> str:
    """Return a time in its two largest units: 2 d 3 h, 1 h 23 min, 45 s."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min")]
    parts.append((whole % 60, "s"))
    first = next((place for place, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"


@dataclass(frozen=True)
class Evidence:
    """What the state of a run is concluded from.

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


def state_of(known: Evidence) -> tuple[str, str]:
    """Return the state of a run, as :class:`RunState` has it, and a message."""
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
    """Return how a run that neither waits nor runs ended."""
    newest = known.training[-1] if known.training else None
    if newest and (last is None or _came_after(newest, last)):
        return _of_job(newest, known.states.get(newest.job))
    if last is None:
        return (NEW, "") if known.saved is None else (STOPPED, "")
    if last.outcome is None:
        return _without_end(last, known.states.get(last.job))
    return last.outcome, last.message


def _came_after(record: JobRecord, last: Session) -> bool:
    """Whether a job is another one than the last session's, and a later one."""
    return record.job != last.job and record.submitted >= last.began


def _of_job(record: JobRecord, state: JobState | None) -> tuple[str, str]:
    """Return how a job ended that left no session."""
    if state is None:
        return LOST, f"job {record.job} is gone, and Slurm does not say how it ended"
    if state.name == "COMPLETED":
        return DONE, ""
    if state.name == "CANCELLED":
        return STOPPED, f"job {state.job} was cancelled"
    if not Path(record.log).exists():
        return FAILED, (
            f"job {state.job} ended as {state.name} without a line in {record.log}: probably its "
            "node does not see that folder (/tmp and other local disks are not shared)"
        )
    return FAILED, last_error(Path(record.log)) or f"job {state.job} ended as {state.name}"


def _without_end(session: Session, state: JobState | None) -> tuple[str, str]:
    """Return how a session ended that wrote no end: it was killed, or its node failed."""
    if state is not None and state.name == "CANCELLED":
        return STOPPED, f"job {state.job} was cancelled before it saved"
    slurm = f" (Slurm: {state.name})" if state is not None else ""
    return LOST, f"stopped without saving on {', '.join(session.hosts)}{slurm}"


def _state(known: Evidence) -> RunState:
    state, message = state_of(known)
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
        other_jobs=_other_jobs(known),
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


def _other_jobs(known: Evidence) -> tuple[str, ...]:
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


def _row(state: RunState) -> tuple[str, ...]:
    return (
        state.run.name,
        state.state,
        _share(state),
        f"{state.images:,}",
        "" if state.speed is None else f"{state.speed:,.1f}",
        "" if state.remaining is None else duration(state.remaining),
        str(state.restarts),
        state.job,
        state.nodes,
        state.score,
    )


def _share(state: RunState) -> str:
    return "" if state.share is None else f"{state.share:.0%}"


def _session_lines(state: RunState) -> dict[str, str]:
    """Return the last sessions by the time when they began."""
    lines = {each.began: _session_line(each) for each in state.sessions[-_SESSIONS_SHOWN:]}
    if state.state == RUNNING and state.sessions and state.sessions[-1].outcome is None:
        lines[state.sessions[-1].began] += RUNNING
    return lines


def _session_line(session: Session) -> str:
    job = f"job {session.job}, " if session.job else ""
    ranks = f"{session.ranks} rank{'s' * (session.ranks > 1)}"
    images = "" if session.last_images is None else f" at {session.last_images:,} images"
    return f"{job}{ranks} on {','.join(session.hosts)}: {session.outcome or ''}{images}"
