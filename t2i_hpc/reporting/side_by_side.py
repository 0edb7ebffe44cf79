"""Scores of several runs side by side: one table for each metric and protocol, best first.

Scores of different protocols are never put in one table. Published numbers stand below a line
of their own and are called so: nobody measured them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.evaluation.published import Published, published_beside
from t2i_hpc.evaluation.scores import FILE_NAME
from t2i_hpc.reporting.results_costs import read_settings
from t2i_hpc.reporting.score_groups import ScoreCurve, measured, score_curves


@dataclass(frozen=True)
class Column:
    """Comparable scores of several runs.

    Attributes:
        curve: what they have in common; any run's.
        best: each run's name and its best score, best first: (name, images seen, value, std).
        published: stated numbers of the same kind.
    """

    curve: ScoreCurve
    best: Sequence[tuple[str, int, float, float | None]]
    published: Sequence[Published]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        curve, names = self.curve, ("run", "images", "value", "std")
        return {
            "metric": curve.metric,
            "protocol": curve.protocol,
            "protocol_name": curve.name,
            "n": curve.n,
            "n_real": curve.n_real,
            "measured": [dict(zip(names, row, strict=True)) for row in self.best],
            "published_not_reproduced": [asdict(row) for row in self.published],
        }


def columns(runs: Sequence[Path], metric: str, published: bool) -> list[Column]:
    """Return the scores of runs, grouped by what may be compared.

    Args:
        runs: folders with a scores.jsonl.
        metric: what the metric's name begins with.
        published: whether to put papers' numbers beside them.

    Raises:
        RunError: no run is named, or one has no such scores.
    """
    if not runs:
        raise RunError("no runs are named: say python -m t2i_hpc.compare runs/<name>-<hash> …")
    found: dict[tuple[Any, ...], list[tuple[Path, ScoreCurve]]] = {}
    for run in runs:
        for curve in _curves(run, metric):
            key = (curve.metric, curve.protocol, curve.n, curve.n_real)
            found.setdefault(key, []).append((run, curve))
    return [_column(group, published) for group in found.values()]


def table(column: Column) -> str:
    """Return a column as lines of text."""
    curve = column.curve
    better = "lower" if curve.lower_is_better else "higher"
    against = f" against {curve.n_real:,}" if curve.n_real else ""
    title = f"{curve.metric}, N = {curve.n:,}{against}, protocol {curve.name} {curve.protocol}"
    rows = [
        (name, measured(curve.metric, value, std), f"after {images:,} images")
        for name, images, value, std in column.best
    ]
    stated = [
        (
            row.system,
            measured(row.metric, row.value, row.std),
            f"{row.source} (network: {row.network})",
        )
        for row in column.published
    ]
    widths = [max(len(row[place]) for row in [*rows, *stated]) for place in range(2)]
    lines = [f"{title} ({better} is better)", *_lines(rows, widths)]
    if stated:
        lines += ["  published, not reproduced here:", *_lines(stated, widths)]
    return "\n".join(lines)


def _curves(run: Path, metric: str) -> list[ScoreCurve]:
    if not run.is_dir():
        raise RunError(f"there is no folder {run}: name runs, e.g. runs/<name>-<hash>")
    rows: Iterable[Mapping[str, Any]] = read_json_lines(run / FILE_NAME)
    curves = [c for c in score_curves(rows) if c.metric.startswith(metric)]
    if not curves:
        what = f" of {metric!r}" if metric else ""
        raise RunError(f"{run} has no scores{what} yet: run t2i_hpc.evaluate run={run} first")
    return curves


def _column(group: Sequence[tuple[Path, ScoreCurve]], published: bool) -> Column:
    run, curve = group[0]
    rows = [(run.resolve().name, c.best.images, c.best.value, c.best.std) for run, c in group]
    rows.sort(key=lambda row: row[2] if curve.lower_is_better else -row[2])
    data = read_settings(run).get("data.name", "")
    stated = published_beside(curve.metric, curve.name, data, curve.n) if published else []
    return Column(curve, rows, stated)


def _lines(rows: Sequence[tuple[str, str, str]], widths: Sequence[int]) -> list[str]:
    return [f"  {r[0]:<{widths[0]}}  {r[1]:>{widths[1]}}  {r[2]}" for r in rows]
