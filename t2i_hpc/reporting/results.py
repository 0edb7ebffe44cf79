"""Results of many runs side by side: what varies between them, and what came of it.

The axes are those of the sweep, or, where runs are named one by one, the settings in which they
differ. Scores stand in one column only if they may be compared: same metric, protocol and N.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t2i_hpc.cluster.finding import find_runs
from t2i_hpc.cluster.sweeps import is_sweep, read_sweep
from t2i_hpc.common.errors import ConfigurationError, nearest
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.compose import from_yaml
from t2i_hpc.config.fields import entries
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.reporting.run_state import RunState, read_states
from t2i_hpc.reporting.scores import Score, score_curves

RUN = "run"


@dataclass(frozen=True, order=True)
class Measure:
    """What a column of scores holds; scores of different measures are not comparable."""

    metric: str
    n: int
    n_real: int
    protocol: str
    name: str
    lower_is_better: bool

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
        scores: the newest score of each run that has one, by measure.
    """

    labels: dict[str, str]
    states: list[RunState] = field(default_factory=list)
    scores: dict[Measure, list[Score]] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """A table that is not written yet: axes and measures are its columns."""

    axes: tuple[str, ...]
    measures: tuple[Measure, ...]
    rows: list[Row]
    over: str = ""


def read_results(words: Sequence[str], over: str = "") -> Results:
    """Read what runs and sweeps have come to.

    Args:
        words: sweeps, run directories, folders of runs.
        over: an axis to average over, "" for none.

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
        row.states.append(state)
        for measure, score in _scores(state.run):
            row.scores.setdefault(measure, []).append(score)
    measures = {measure for row in rows.values() for measure in row.scores}
    ordered = sorted(measures, key=lambda each: (each.metric, -each.n, each))
    return Results(shown, tuple(ordered), list(rows.values()), over)


def _labels(words: Sequence[str]) -> dict[Path, dict[str, str]]:
    """Return for each run the values of what varies."""
    folders = [Path(word) for word in words]
    if all(is_sweep(folder) for folder in folders):
        points = [point for folder in folders for point in read_sweep(folder).points]
        return {point.run: point.values for point in points}
    runs = find_runs(words)
    settings = {run: _settings(run) for run in runs}
    varying = _varying(settings.values())
    return {
        run: {RUN: run.name, **{key: settings[run].get(key, "") for key in varying}} for run in runs
    }


def _settings(run: Path) -> dict[str, str]:
    """Return the settings that make a run what it is; none of one that has not begun."""
    if not (run / "config.yaml").is_file():
        return {}
    config = from_yaml(run / "config.yaml", TrainConfig)
    return {entry.key: str(entry.value) for entry in entries(config) if entry.meaning.identity}


def _varying(settings: Iterable[Mapping[str, str]]) -> list[str]:
    known = [each for each in settings if each]
    keys = dict.fromkeys(key for each in known for key in each)
    return [key for key in keys if len({each.get(key, "") for each in known}) > 1]


def _scores(run: Path) -> list[tuple[Measure, Score]]:
    curves = score_curves(read_json_lines(run / "scores.jsonl"))
    return [
        (Measure(c.metric, c.n, c.n_real, c.protocol, c.name, c.lower_is_better), c.scores[-1])
        for c in curves
    ]
