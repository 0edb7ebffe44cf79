"""Results as Markdown for people and as CSV for programs.

Plain tables for terminals and logs.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Container, Sequence

from t2i_hpc.reporting.results import Results, Row
from t2i_hpc.reporting.score_groups import Score, measured

_COSTS = ["generator (M)", "all trained (M)", "GFLOP/img", "memory (GB)"]
_CSV_COSTS = ["generator_parameters", "trained_parameters", "gflop_per_image", "memory_gigabytes"]


def to_markdown(results: Results) -> str:
    """Return a table in Markdown; averaged scores as mean ± standard deviation."""
    titles = [*results.axes, *(["runs"] if results.over else []), "state", "images", "img/s"]
    titles += _COSTS if results.with_costs else []
    for measure in results.measures:
        titles += [measure.title, "at images"]
    rows = [[*titles], *(_markdown_row(results, row) for row in results.rows)]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    numbers = range(len(results.axes) + 1, len(titles))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * (width - 1) + (":" if n in numbers else "-") for n, width in enumerate(widths)]
    lines = aligned([rows[0], rule, *rows[1:]], numbers, between=" | ")
    return "".join(f"| {line} |\n" for line in lines)


def to_csv(results: Results) -> str:
    """Return the same with all digits.

    Behind a score stands its error bar; behind an average the deviation between runs, and how
    many have a score.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    runs = ["runs"] if results.over else []
    titles = [*results.axes, *runs, "state", "images", "images_per_second"]
    titles += _CSV_COSTS if results.with_costs else []
    for measure in results.measures:
        more = ["standard deviation", "runs"] if results.over else ["error bar"]
        titles += [f"{measure.title} {name}".strip() for name in ("", *more, "at images")]
    writer.writerow(titles)
    writer.writerows(_csv_row(results, row) for row in results.rows)
    return stream.getvalue()


def _markdown_row(results: Results, row: Row) -> list[str]:
    cells = [*_head(results, row), _span([state.images for state in row.states])]
    cells.append(_number(row.speeds, ",.1f"))
    if results.with_costs:
        millions = [[count / 1e6 for count in counts] for counts in _parameters(row)]
        cells += [_number(counts, ",.3f") for counts in millions]
        cells += [_number(_gflop(row), ",.2f"), _number(row.memory, ",.2f")]
    for measure in results.measures:
        found = row.scores.get(measure, [])
        cells.append(_mean(measure.metric, found, len(row.states)))
        cells.append(_span([score.images for score in found]))
    return cells


def _csv_row(results: Results, row: Row) -> list[str]:
    cells = [*_head(results, row), _span([state.images for state in row.states], "")]
    cells.append(_number(row.speeds))
    if results.with_costs:
        cells += [_number(values) for values in (*_parameters(row), _gflop(row), row.memory)]
    for measure in results.measures:
        found = row.scores.get(measure, [])
        values = [score.value for score in found]
        cells.append(str(statistics.fmean(values)) if values else "")
        if results.over:
            cells.append(str(statistics.stdev(values)) if len(values) > 1 else "")
            cells.append(str(len(values)))
        else:
            cells += [str(score.std) if score.std is not None else "" for score in found] or [""]
        cells.append(_span([score.images for score in found], ""))
    return cells


def _head(results: Results, row: Row) -> list[str]:
    runs = [str(len(row.states))] if results.over else []
    return [*row.labels.values(), *runs, _states(row)]


def _mean(metric: str, scores: Sequence[Score], runs: int) -> str:
    """Return a score with its error bar, or the mean of several with their deviation."""
    values = [score.value for score in scores]
    if not values:
        return ""
    mean = statistics.fmean(values)
    if runs == 1:
        return measured(metric, mean, scores[0].std)
    spread = statistics.stdev(values) if len(values) > 1 else None
    missing = "" if len(values) == runs else f" ({len(values)} of {runs} runs)"
    return f"{measured(metric, mean, spread)}{missing}"


def _states(row: Row) -> str:
    counts = Counter(state.state for state in row.states)
    if len(counts) == 1:
        return row.states[0].state
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _span(images: Sequence[int], thousands: str = ",") -> str:
    ends = sorted({min(images), max(images)}) if images else []
    return " to ".join(f"{end:{thousands}}" for end in ends)


def _number(values: Sequence[float], form: str = "") -> str:
    """Return the mean of what is known of a row's runs."""
    if not values:
        return ""
    return format(values[0] if len(set(values)) == 1 else statistics.fmean(values), form)


def _parameters(row: Row) -> tuple[list[int], list[int]]:
    """Return the numbers of parameters of generators, and of all that is trained."""
    found = [cost.generator_parameters for cost in row.costs]
    generators = [count for count in found if count is not None]
    return generators, [cost.trained_parameters for cost in row.costs]


def _gflop(row: Row) -> list[float]:
    return [cost.gflop_per_image for cost in row.costs]


def aligned(
    rows: Sequence[Sequence[str]], right: Container[int] = (), between: str = "  "
) -> list[str]:
    """Return rows as lines with aligned columns.

    Args:
        rows: of equal length; the first are the titles.
        right: numbers of the columns that are set flush right.
        between: what stands between columns.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        between.join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [line.rstrip() for line in lines] if between.isspace() else lines
