"""Results of many runs side by side: what varies between them, and what came of it.

The axes are those of the sweeps, or, where only runs are named, the settings in which they
differ. Scores share a column only if they may be compared: same metric, protocol and N.
Published numbers stand apart and are called so: nobody measured them here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t2i_hpc.cluster.sweeps import find_runs, is_run, is_sweep, read_sweep
from t2i_hpc.common.errors import ConfigurationError, RunError, nearest
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.evaluation.published import Published, published_beside
from t2i_hpc.evaluation.scores import FILE_NAME, Score, score_curves
from t2i_hpc.reporting.costs import Cost
from t2i_hpc.reporting.run_record import read_settings
from t2i_hpc.reporting.run_status import RunState, read_states

RUN = "run"
_SPEED_LINES = 20  # of a run's curves that its speed is the median of


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
        scores: the newest or the best score of each run that has one, by measure.
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
    """A table that is not written yet: axes and measures are its columns.

    Attributes:
        published: stated numbers of the same kind by measure; None where nobody asked.
    """

    axes: tuple[str, ...]
    measures: tuple[Measure, ...]
    rows: list[Row]
    over: str = ""
    with_costs: bool = False
    published: Mapping[Measure, Sequence[Published]] | None = None


def read_results(
    named: Sequence[str],
    over: str = "",
    cost_of: Callable[[Path], Cost | None] | None = None,
    *,
    metric: str = "",
    best: bool = False,
    published: bool = False,
) -> Results:
    """Read what runs and sweeps have come to.

    Args:
        named: sweeps, run directories, folders of runs, folders with a scores.jsonl.
        over: an axis to average over, "" for none.
        cost_of: gives a run's costs; None leaves them out.
        metric: what the metrics' names begin with.
        best: take each run's best scores, not its newest ones.
        published: put the papers' numbers beside them.

    Raises:
        RunError: a name names nothing, or no run has a score of `metric`.
        ConfigurationError: `over` is no axis.
    """
    labels = _labels(named)
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
        for measure, score in _scores(state.run, metric, best):
            row.scores.setdefault(measure, []).append(score)
    found = {measure for row in rows.values() for measure in row.scores}
    if metric and not found:
        raise RunError(
            f"no run has scores of {metric!r} yet: run python -m t2i_hpc.evaluate run={named[0]} "
            "first"
        )
    measures = tuple(sorted(found, key=lambda each: (each.metric, -each.n, each)))
    stated = {measure: _stated(measure, labels) for measure in measures} if published else None
    return Results(shown, measures, list(rows.values()), over, cost_of is not None, stated)


def _add(row: Row, state: RunState, cost: Cost | None) -> None:
    """Add a run to a row, but for its scores."""
    row.states.append(state)
    lines = read_json_lines(state.run / "metrics.jsonl")[-_SPEED_LINES:]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    memory = [line["memory_gigabytes"] for line in lines if "memory_gigabytes" in line]
    row.speeds += [statistics.median(speeds)] if speeds else []
    row.memory += memory[-1:]
    row.costs += [cost] if cost else []


def _labels(named: Sequence[str]) -> dict[Path, dict[str, str]]:
    """Return for each run the values of what varies, or its name where it stands beside sweeps."""
    sweeps = [Path(name) for name in named if is_sweep(Path(name))]
    points = [point for folder in sweeps for point in read_sweep(folder).points]
    labels = {point.run: point.values for point in points}
    others = [name for name in named if not is_sweep(Path(name))]
    runs = list(dict.fromkeys(run for name in others for run in _runs_of(Path(name))))
    if sweeps:
        return labels | {run: {RUN: run.name} for run in runs if run not in labels}
    settings = {run: read_settings(run) for run in runs}
    axes = varying(settings.values())
    return {
        run: {RUN: run.resolve().name, **{key: settings[run].get(key, "") for key in axes}}
        for run in runs
    }


def _runs_of(folder: Path) -> list[Path]:
    return [folder] if has_scores_alone(folder) else find_runs([str(folder)])


def has_scores_alone(folder: Path) -> bool:
    """Whether a folder is that of scored image files, which no training made."""
    return (folder / FILE_NAME).is_file() and not is_run(folder)


def varying(settings: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values are not the same in all runs that have begun."""
    known = [each for each in settings if each]
    keys = dict.fromkeys(key for each in known for key in each)
    return [key for key in keys if len({each.get(key, "") for each in known}) > 1]


def _scores(run: Path, metric: str, best: bool) -> list[tuple[Measure, Score]]:
    """Return a run's best or newest score of each measure whose metric begins with `metric`."""
    return [
        (
            Measure(c.metric, c.n, c.n_real, c.protocol, c.lower_is_better, c.name),
            c.best if best else c.scores[-1],
        )
        for c in score_curves(read_json_lines(run / FILE_NAME))
        if c.metric.startswith(metric)
    ]


def _stated(measure: Measure, runs: Iterable[Path]) -> list[Published]:
    """Return what papers state for a measure on the data that the first of its runs has."""
    own = [run for run in runs if any(each == measure for each, _ in _scores(run, "", False))]
    data = read_settings(own[0]).get("data.name", "")
    return published_beside(measure.metric, measure.name, data, measure.n)
