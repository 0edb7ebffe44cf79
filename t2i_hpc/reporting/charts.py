"""Line charts as inline SVG, drawn by matplotlib: no scripts, readable in light and dark.

Colors become CSS variables of the page and text takes the page's font, so that a chart looks
like what surrounds it. matplotlib is imported when the first chart is drawn.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from t2i_hpc.evaluation.scores import score_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
_SIZE = (4.8, 2.5)  # inches of 100 px
_MOST_POINTS = 240
_MOST_DOTS = 12  # points of a line that are shown one by one
# Each color stands for the variable of page.css whose value it is in light.
_LINE_COLORS = ("#2a6fdb", "#d9711c", "#1d9a63", "#c2366f", "#7d56c9", "#6b7280")
_INK, _SOFT, _RULE = "#1d2129", "#5d6673", "#e3e5e8"
_VARIABLES = {_INK: "ink", _SOFT: "soft", _RULE: "rule"} | {
    color: f"line-{number}" for number, color in enumerate(_LINE_COLORS)
}
_STYLE: Any = {
    "font.size": 8.64,  # points: 12 px
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "t2i_hpc",  # the same chart is the same bytes
    "text.parse_math": False,
    "path.simplify": False,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "grid.color": _RULE,
}
# Of matplotlib's file: what a page has already, or what would reach beyond the chart.
_UNWANTED = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r' xmlns(:\w+)?="[^"]*"',
        r' (width|height)="[\d.]+pt"',
        r"<defs>\s*<style.*?</style>\s*</defs>",
        r"<defs>\s*<clipPath.*?</defs>",
        r' clip-path="[^"]*"',
        r' transform="rotate\(-0 [^"]*"',
        r"font-family: [^;]*; ",
        r"<g[^>]*/>",
    )
]
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the legend.
        points: x ascending.
        bars: error bars of the points, up and down; None of one that has none. Empty: of none.
    """

    name: str
    points: Sequence[Point]
    bars: Sequence[float | None] = ()

    def drawn(self) -> Line:
        """Return the line without NaN and Inf, thinned; means of points have no error bar."""
        bars = self.bars or (None,) * len(self.points)
        pairs = zip(self.points, bars, strict=True)
        kept = [(point, bar) for point, bar in pairs if finite([point])]
        points = [point for point, _ in kept]
        thinned = thin(points)
        return Line(self.name, thinned, [bar for _, bar in kept] if thinned == points else ())


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    marked: Point | None = None,
    from_zero: bool = False,
) -> str:
    """Draw lines over a common x as a ``<figure>`` with title and legend.

    Args:
        lines: what to draw; non-finite points are left out.
        title: heading, also read out by screen readers.
        x_label: what x counts.
        marked: a point to point out with its value.
        from_zero: let the y axis begin at 0.

    Returns:
        HTML; empty where no line has a point.
    """
    shown = [line for line in (each.drawn() for each in lines) if line.points]
    if not shown:
        return ""
    svg = _svg(shown, x_label, marked, from_zero)
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3>'
        f'{svg.replace("<svg", f"""<svg role="img" aria-label="{escape(title)}" """, 1)}'
        f"{_legend(shown)}</figure>"
    )


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Replace neighboring points by their mean, so that at most `most` are left."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups]


def finite(points: Sequence[Point]) -> list[Point]:
    """Return the points without NaN and Inf."""
    return [point for point in points if all(map(math.isfinite, point))]


def short(value: float) -> str:
    """Return a number for an axis: 12.5k, 3M, 0.04."""
    for size, unit in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.6g}{unit}"
    return f"{value:.6g}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _svg(lines: Sequence[Line], x_label: str, marked: Point | None, from_zero: bool) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            dots = "o" if len(line.points) <= _MOST_DOTS else ""
            axes.plot(
                *zip(*line.points, strict=True),
                color=_LINE_COLORS[number % len(_LINE_COLORS)],
                linewidth=1.4,
                marker=dots,
                markersize=3.5,
                clip_on=False,  # a clip path would need an id that is unique in the page
                gid="line",
            )
            _draw_bars(axes, line, _LINE_COLORS[number % len(_LINE_COLORS)])
        if from_zero:
            axes.set_ylim(bottom=min(0.0, *(y for line in lines for _, y in line.points)))
        axes.set_xlabel(x_label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(axis="y")
        if marked:
            _mark(axes, marked)
        content = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    return _inline(content.getvalue())


def _draw_bars(axes: Axes, line: Line, color: str) -> None:
    """Draw error bars as lines of two points, with short ends."""
    for (x, y), bar in zip(line.points, line.bars, strict=False):
        if bar and math.isfinite(bar):
            ends = [y - bar, y + bar]
            axes.plot(
                [x, x], ends, "_-", color=color, linewidth=1, markersize=5, clip_on=False, gid="bar"
            )


def _mark(axes: Axes, point: Point) -> None:
    x, y = point
    axes.plot(
        [x], [y], "o", markersize=7, markerfacecolor="none", color=_INK, clip_on=False, gid="mark"
    )
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    right, above = x > (low + high) / 2, y > (bottom + top) / 2
    axes.annotate(
        f"best {score_text(y)}",
        point,
        xytext=(-7 if right else 7, -11 if above else 7),
        textcoords="offset points",
        horizontalalignment="right" if right else "left",
        color=_INK,
        fontweight="bold",
        gid="mark",
    )


def _inline(svg: str) -> str:
    """Return an SVG file's root element for a page: no ids twice, its colors and its font."""
    svg = svg[svg.index("<svg") :]
    for unwanted in _UNWANTED:
        svg = unwanted.sub("", svg)
    svg = re.sub(r' id="(line|mark|bar)"', r' class="\1"', svg).replace("xlink:href", "href")
    svg = re.sub(r' id="(?!m[0-9a-f]{10}")[^"]*"', "", svg)
    for color, name in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{name}, {color})")
    return re.sub(r"\s*\n\s*", "\n", svg)


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    entries = "".join(
        f'<li><i style="background:var(--line-{number % len(_LINE_COLORS)})"></i>'
        f"{escape(line.name)}</li>"
        for number, line in enumerate(lines)
    )
    return f'<ul class="legend">{entries}</ul>'
