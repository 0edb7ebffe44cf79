"""Results of many runs in print: as Markdown for people, as CSV and JSON for programs.

A cell without a value was not measured. Published numbers stand below, and are called so.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from t2i_hpc.common.terminal import aligned
from t2i_hpc.evaluation.judges import GAMED
from t2i_hpc.evaluation.published import Published
from t2i_hpc.evaluation.scores import Score, beside_real, measured
from t2i_hpc.reporting.results import RUN, Measure, Results, Row, has_scores_alone
from t2i_hpc.reporting.run_record import read_settings

_NO_RUN = "no run"  # state of a folder that holds scores alone
_COSTS = ("generator (M)", "all trained (M)", "GFLOP/img", "memory (GB)")


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
    table = "".join(f"| {line} |\n" for line in lines)
    notes = _flattered_line(results) + _gamed_lines(results)
    return table + notes + _published_lines(results.published)


def _gamed_lines(results: Results) -> str:
    """Return a warning about the runs whose scores are what they were trained on."""
    runs = [state.run for row in results.rows for state in row.states]
    weights = {run.resolve().name: read_settings(run).get("system.fd_weight", "0") for run in runs}
    gamed = [name for name, weight in weights.items() if float(weight) > 0]
    return f"\n{', '.join(gamed)}: {GAMED}\n" if gamed and results.measures else ""


_MARK = " *"  # behind a score that is flattered


def _flattered_line(results: Results) -> str:
    """Explain the mark of scores, where there is one."""
    scores = (score for row in results.rows for found in row.scores.values() for score in found)
    if not any(score.flattered for score in scores):
        return ""
    return "\n\\* by a network that the run was trained against, which flatters it\n"


def to_csv(results: Results) -> str:
    """Return the same with all digits.

    Behind a score stands its error bar; behind an average the deviation between runs, and how
    many have a score.
    """
    rows = [_facts(results, row) | _all_digits(results, row) for row in results.rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def to_json(results: Results) -> str:
    """Return the rows, and the scores of each measure, best first, with published numbers."""
    content = {
        "rows": [_facts(results, row) for row in results.rows],
        "scores": [_measure_dict(results, measure) for measure in results.measures],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _markdown_row(results: Results, row: Row) -> list[str]:
    cells = [*row.labels.values(), *([str(len(row.states))] if results.over else [])]
    cells += [_states(row), _span([state.images for state in row.states], ",")]
    cells.append(_number(row.speeds, ",.1f"))
    if results.with_costs:
        generator, trained, gflop = _costs(row)
        millions = [[count / 1e6 for count in counts] for counts in (generator, trained)]
        cells += [_number(counts, ",.3f") for counts in millions]
        cells += [_number(gflop, ",.2f"), _number(row.memory, ",.2f")]
    for measure in results.measures:
        found = row.scores.get(measure, [])
        marked = _MARK if any(score.flattered for score in found) else ""
        cells.append(_mean_text(measure.metric, found, len(row.states)) + marked)
        cells.append(_span([score.images for score in found], ","))
    return cells


def _facts(results: Results, row: Row) -> dict[str, Any]:
    """Return all of a row but its scores, for programs; None for what is not known."""
    facts: dict[str, Any] = {**row.labels, **({"runs": len(row.states)} if results.over else {})}
    facts |= {"state": _states(row), "images": _span([state.images for state in row.states])}
    facts["images_per_second"] = _mean(row.speeds)
    if results.with_costs:
        generator, trained, gflop = _costs(row)
        facts["generator_parameters"] = _mean(generator)
        facts["trained_parameters"] = _mean(trained)
        facts["gflop_per_image"] = _mean(gflop)
        facts["memory_gigabytes"] = _mean(row.memory)
    return facts


def _all_digits(results: Results, row: Row) -> dict[str, Any]:
    """Return a row's scores by the titles that CSV has for them."""
    cells: dict[str, Any] = {}
    for measure in results.measures:
        found, title = row.scores.get(measure, []), measure.title
        value, bar = _mean_and_bar(results, found)
        cells[title] = value
        if results.over:
            cells |= {f"{title} standard deviation": bar, f"{title} runs": len(found)}
        else:
            cells[f"{title} error bar"] = bar
            if any(score.real for each in results.rows for score in each.scores.get(measure, [])):
                cells[f"{title} over real halves"] = found[0].over_real if found else None
        cells[f"{title} at images"] = _span([score.images for score in found])
    return cells


def _measure_dict(results: Results, measure: Measure) -> dict[str, Any]:
    """Return a measure, its scores best first, and what papers state for it."""
    measured_rows: list[dict[str, Any]] = []
    for row in results.rows:
        found = row.scores.get(measure, [])
        if found:
            value, bar = _mean_and_bar(results, found)
            name = {RUN: row.states[0].run.resolve().name}
            who = {"runs": len(found)} if results.over else name
            span = _span([score.images for score in found])
            at = int(span) if span.isdecimal() else span
            facts = {"images": at, "value": value, "std": bar}
            if not results.over and found[0].real:
                facts["real_halves"] = found[0].real
            if any(score.flattered for score in found):
                facts["flattered"] = True
            measured_rows.append({**row.labels, **who, **facts})
    sign = 1 if measure.lower_is_better else -1
    found_dict = {
        "metric": measure.metric,
        "protocol": measure.protocol,
        "protocol_name": measure.name,
        "n": measure.n,
        "n_real": measure.n_real,
        "measured": sorted(measured_rows, key=lambda each: sign * each["value"]),
    }
    if results.published is not None:
        stated = [asdict(each) for each in results.published[measure]]
        found_dict["published_not_reproduced"] = stated
    return found_dict


def _published_lines(published: Mapping[Measure, Sequence[Published]] | None) -> str:
    """Return the published numbers, a list for each measure that has some."""
    if published is None:
        return ""
    if not any(published.values()):
        return "\nNo published number has the same metric, network, data set and N.\n"
    lines = []
    for measure, stated in published.items():
        rows = [
            (
                each.system,
                measured(each.metric, each.value, each.std),
                f"{each.source} (network: {each.network})",
            )
            for each in stated
        ]
        if rows:
            lines += ["", f"{measure.title}, published, not reproduced here:", ""]
            lines += [f"    {line}" for line in aligned(rows, right=(1,))]
    return "".join(f"{line}\n" for line in lines)


def _mean_text(metric: str, scores: Sequence[Score], runs: int) -> str:
    """Return a score with its error bar, or the mean of several with their deviation."""
    values = [score.value for score in scores]
    if not values:
        return ""
    mean = statistics.fmean(values)
    if runs == 1:
        return measured(metric, mean, scores[0].std) + beside_real(scores[0].over_real)
    spread = statistics.stdev(values) if len(values) > 1 else None
    missing = "" if len(values) == runs else f" ({len(values)} of {runs} runs)"
    return f"{measured(metric, mean, spread)}{missing}"


def _mean_and_bar(results: Results, scores: Sequence[Score]) -> tuple[float | None, float | None]:
    """Return a score and its error bar; of an average the deviation between runs."""
    values = [score.value for score in scores]
    if not values:
        return None, None
    if not results.over:
        return statistics.fmean(values), scores[0].std
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _states(row: Row) -> str:
    counts = Counter(
        _NO_RUN if has_scores_alone(state.run) else state.state for state in row.states
    )
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _span(images: Sequence[int], thousands: str = "") -> str:
    ends = sorted({min(images), max(images)}) if images else []
    return " to ".join(f"{end:{thousands}}" for end in ends)


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean of what is known of a row's runs; equal values exactly."""
    if not values:
        return None
    return values[0] if len(set(values)) == 1 else statistics.fmean(values)


def _number(values: Sequence[float], form: str) -> str:
    mean = _mean(values)
    return "" if mean is None else format(mean, form)


def _costs(row: Row) -> tuple[list[int], list[int], list[float]]:
    """Return parameters of generators and of all that is trained, and GFLOP an image."""
    found = [cost.generator_parameters for cost in row.costs]
    generators = [count for count in found if count is not None]
    trained = [cost.trained_parameters for cost in row.costs]
    return generators, trained, [cost.gflop_per_image for cost in row.costs]
