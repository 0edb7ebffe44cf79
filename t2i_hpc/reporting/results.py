"""Results of many runs side by side: what varies between them, and what came of it.

The axes are those of the sweeps, or, where only runs are named, the settings in which they
differ. Scores stand in one column only if they may be compared: same metric, protocol and N.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t2i_hpc.cluster.cancelling import find_runs
from t2i_hpc.cluster.sweeps import is_sweep, read_sweep
from t2i_hpc.common.errors import ConfigurationError, nearest
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.reporting.results_costs import Cost, read_settings, varying
from t2i_hpc.reporting.run_state import RunState, read_states
from t2i_hpc.reporting.score_groups import Score, score_curves

RUN = "run"
_LINES = 20  # of a run's curves that its speed is the median of


@dataclass(frozen=True, order=True)
class Measure:
    """What a column of scores holds; scores of different measures are not comparable."""

    metric: str
    n: int
    n_real: int
    protocol: str
    lower_is_better: bool
    # For people: one protocol is one column, whatever it is called.
    name: str = field(compare=False)

    @property
    def title(self) -> str:
        """The column's head."""
        arrow = "↓" if self.lower_is_better else "↑"
        real = f", N real {self.n_real:,}" if self.n_real else ""
        protocol = f"{self.name} {self.protocol}".strip()
        return f"{self.metric} {arrow} (N {self.n:,}{real}, protocol {protocol})"


@dataclass
class Row:
    """One run, or several that differ in what is averaged over.

    Attributes:
        labels: the value of each axis.
        states: of each run.
        speeds: images a second of each run that has logged, the median of its last lines.
        scores: the newest score of each run that has one, by measure.
        costs: of each run that has begun, where they were asked for.
        memory: largest of each run's first rank so far, in GB.
    """

    labels: dict[str, str]
    states: list[RunState] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    scores: dict[Measure, list[Score]] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """A table that is not written yet: axes and measures are its columns."""

    axes: tuple[str, ...]
    measures: tuple[Measure, ...]
    rows: list[Row]
    over: str = ""
    with_costs: bool = False


def read_results(
    words: Sequence[str], over: str = "", cost_of: Callable[[Path], Cost | None] | None = None
) -> Results:
    """Read what runs and sweeps have come to.

    Args:
        words: sweeps, run directories, folders of runs.
        over: an axis to average over, "" for none.
        cost_of: gives a run's costs; None leaves them out.

    Raises:
        RunError: a word names nothing.
        ConfigurationError: `over` is no axis.
    """
    labels = _labels(words)
    axes = tuple(dict.fromkeys(axis for label in labels.values() for axis in label))
    if over and over not in axes:
        raise ConfigurationError(f"over={over} does not vary here: {nearest(over, axes)}")
    hidden = {over, RUN} if over else set()
    shown = tuple(axis for axis in axes if axis not in hidden)
    rows: dict[tuple[str, ...], Row] = {}
    for state in read_states(list(labels)):
        key = tuple(labels[state.run].get(axis, "") for axis in shown)
        row = rows.setdefault(key, Row(dict(zip(shown, key, strict=True))))
        _add(row, state, cost_of(state.run) if cost_of else None)
    measures = {measure for row in rows.values() for measure in row.scores}
    ordered = sorted(measures, key=lambda each: (each.metric, -each.n, each))
    return Results(shown, tuple(ordered), list(rows.values()), over, cost_of is not None)


def _add(row: Row, state: RunState, cost: Cost | None) -> None:
    """Add a run to a row."""
    row.states.append(state)
    lines = read_json_lines(state.run / "metrics.jsonl")[-_LINES:]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    memory = [line["memory_gigabytes"] for line in lines if "memory_gigabytes" in line]
    row.speeds += [statistics.median(speeds)] if speeds else []
    row.memory += memory[-1:]
    row.costs += [cost] if cost else []
    for measure, score in _scores(state.run):
        row.scores.setdefault(measure, []).append(score)


def _labels(words: Sequence[str]) -> dict[Path, dict[str, str]]:
    """Return for each run the values of what varies, or its name where it stands beside sweeps."""
    folders = [Path(word) for word in words]
    sweeps = [folder for folder in folders if is_sweep(folder)]
    points = [point for folder in sweeps for point in read_sweep(folder).points]
    labels = {point.run: point.values for point in points}
    if len(sweeps) == len(folders):
        return labels
    runs = find_runs([word for word in words if not is_sweep(Path(word))])
    if sweeps:
        return labels | {run: {RUN: run.name} for run in runs if run not in labels}
    settings = {run: read_settings(run) for run in runs}
    axes = varying(settings.values())
    return {
        run: {RUN: run.name, **{key: settings[run].get(key, "") for key in axes}} for run in runs
    }


def _scores(run: Path) -> list[tuple[Measure, Score]]:
    curves = score_curves(read_json_lines(run / "scores.jsonl"))
    return [
        (Measure(c.metric, c.n, c.n_real, c.protocol, c.lower_is_better, c.name), c.scores[-1])
        for c in curves
    ]
