"""Sections of the page on what a training step is like: gradients, and where its time goes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from t2i_hpc.reporting.charts import Line, Point, line_chart
from t2i_hpc.reporting.markup import section, wide_table
from t2i_hpc.reporting.run_record import RunRecord

X_LABEL = "images seen in training"


def gradients(record: RunRecord) -> str:
    """Norms of each module's gradient, phase by phase, over the training; what they are now."""
    norms, rates = (
        numbers_by_name(record, "gradient_norms"),
        numbers_by_name(record, "learning_rates"),
    )
    if not norms:
        return ""
    rows = []
    for name, points in norms.items():
        values = [value for _, value in points]
        rate = rates.get(name.rpartition("/")[2], [])
        now = f"{rate[-1][1]:.3g}" if rate else ""
        rows.append((name, f"{statistics.median(values):.3g}", f"{values[-1]:.3g}", now))
    heads = ("phase/module", "median norm", "last norm", "last learning rate")
    body = _chart(norms, "norm of the gradient") + wide_table(heads, rows)
    return section("Gradients", "Over all ranks, before a clip; of the step of each line.", body)


def times(record: RunRecord) -> str:
    """Milliseconds of each part of a step over the training, and their shares of it."""
    parts = numbers_by_name(record, "milliseconds")
    if not parts:
        return ""
    medians = {name: statistics.median(ms for _, ms in points) for name, points in parts.items()}
    whole = math.fsum(medians.values()) or 1.0
    rows = [(name, f"{ms:,.1f}", f"{100 * ms / whole:.1f} %") for name, ms in medians.items()]
    body = _chart(parts, "milliseconds") + wide_table(("part", "median ms", "share"), rows)
    return section("Time by phase", "On the first rank's device.", body)


def numbers_by_name(record: RunRecord, key: str) -> dict[str, list[Point]]:
    """Return the points of each number that a column of metrics.jsonl has by name."""
    found: dict[str, list[Point]] = {}
    for row in record.metrics:
        for name, value in (row.get(key) or {}).items():
            found.setdefault(name, []).append((float(row["images"]), float(value)))
    return found


def _chart(series: Mapping[str, Sequence[Point]], title: str) -> str:
    lines = [Line(name, points) for name, points in series.items()]
    return f'<div class="charts">{line_chart(lines, title=title, x_label=X_LABEL)}</div>'
