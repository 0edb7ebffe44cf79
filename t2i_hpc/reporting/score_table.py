"""All scores of a run as a table of its page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from t2i_hpc.reporting import words
from t2i_hpc.reporting.scores import ScoreCurve


def protocol_title(curve: ScoreCurve) -> str:
    """Return a protocol's name, where it has one, and its hash."""
    return f"{curve.name} {curve.protocol}".strip()


def score_table(curves: Sequence[ScoreCurve]) -> str:
    """Return a folded table of all scores; the best of those that may be compared say so."""
    names = ("metric", "value", "training images", "N", "N real", "protocol", "checkpoint", "")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{escape(curve.metric)}</td>"
        f'<td class="number">{words.measured(curve.metric, score.value, score.std)}</td>'
        f'<td class="number">{score.images:,}</td><td class="number">{curve.n:,}</td>'
        f'<td class="number">{curve.n_real:,}</td><td>{escape(protocol_title(curve))}</td>'
        f"<td>{escape(str(score.checkpoint)[:12])}</td>"
        f"<td>{'best' * (score is curve.best)}</td></tr>"
        for curve in curves
        for score in curve.scores
    )
    table = f'<div class="table"><table><tr>{head}</tr>{rows}</table></div>'
    return f"<details><summary>All scores</summary>{table}</details>"
