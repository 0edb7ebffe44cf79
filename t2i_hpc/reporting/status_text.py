"""The state of runs for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from t2i_hpc.reporting.results_text import aligned
from t2i_hpc.reporting.run_state import NEW, RUNNING, UNKNOWN, WAITING, RunState
from t2i_hpc.reporting.score_groups import duration
from t2i_hpc.runs.sessions import DONE, FAILED, LOST, STOPPED, Session

_TITLES = ("run", "state", "done", "images", "img/s", "left", "restarts", "job", "nodes", "score")
_NUMBERS = ("done", "images", "img/s", "left", "restarts")
_SESSIONS = 5
_ENCODER = "text_encoder.safetensors"


def status_table(states: Sequence[RunState]) -> list[str]:
    """Return a line for each run under their titles, and below what is said of some."""
    columns = list(zip(_TITLES, *(_row(state) for state in states), strict=True))
    used = [column for column in columns if any(column[1:])]
    right = [place for place, column in enumerate(used) if column[0] in _NUMBERS]
    notes = [f"{state.run.name}: {state.message}" for state in states if state.message]
    lines = aligned(list(zip(*used, strict=True)), right)
    return [*lines, *([""] if notes else []), *notes]


def status_details(state: RunState) -> list[str]:
    """Return all there is to say of one run, and what to do next."""
    goal = "" if state.goal is None else f" of {state.goal:,}"
    speed = "" if state.speed is None else f" at {state.speed:,.1f} img/s"
    left = "" if state.remaining is None else f", {duration(state.remaining)} left"
    saved = "none" if state.saved is None else f"{state.saved:,} images"
    lines = {
        "run": str(state.run),
        "state": f"{state.state}: {state.message}" if state.message else state.state,
        "progress": f"{_share(state)} {state.images:,}{goal} images{speed}{left}".strip(),
        "checkpoint": saved,
        "score": state.score,
        "job": state.job,
        "nodes": state.nodes,
        "beside": ", ".join(state.beside),
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
    """Return what a person does next."""
    again = "the same command as before goes on"
    point = "the beginning" if not state.saved else f"the checkpoint of {state.saved:,} images"
    after = {
        NEW: "start it: python -m t2i_hpc.launch …",
        WAITING: f"wait, or end it: python -m t2i_hpc.cancel {state.run}",
        RUNNING: f"tail -f {state.log}" if state.log else f"touch {state.run}/stop saves and ends",
        UNKNOWN: "ask again when Slurm answers (scontrol ping), on a login node; start nothing yet",
        STOPPED: f"{again} from {point}",
        DONE: f"python -m t2i_hpc.evaluate run={state.run}",
        FAILED: f"put right what is said above ({state.log or 'its output'} has more); {again} "
        f"from {point}",
        LOST: f"{again} from {point}",
    }
    if state.state == DONE and (state.run / _ENCODER).exists():
        return f"train with it: system.text_encoder.weights={state.run / _ENCODER}"
    if state.state == DONE and state.score:
        return f"python -m t2i_hpc.report run={state.run}"
    return after[state.state]


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
    lines = {each.began: _session_line(each) for each in state.sessions[-_SESSIONS:]}
    if state.state == RUNNING and state.sessions and state.sessions[-1].outcome is None:
        lines[state.sessions[-1].began] += RUNNING
    return lines


def _session_line(session: Session) -> str:
    job = f"job {session.job}, " if session.job else ""
    ranks = f"{session.ranks} rank{'s' * (session.ranks > 1)}"
    images = "" if session.last_images is None else f" at {session.last_images:,} images"
    return f"{job}{ranks} on {','.join(session.hosts)}: {session.outcome or ''}{images}"
