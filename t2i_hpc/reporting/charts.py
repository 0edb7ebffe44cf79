"""Line charts as inline SVG: no library, no scripts, readable in light and dark.

Colors come from CSS variables of the page with a fallback, text from the page's own font, so
that a chart looks like what surrounds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from t2i_hpc.reporting.score_groups import score, short

Point = tuple[float, float]
_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 12, 40
_COLOURS = 6  # --line-0 … --line-5 of page.css
_MOST_POINTS = 240


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name in the legend and its points, x ascending."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Axis:
    """A linear axis: values from `low` to `high` lie on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


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
        lines: what to draw; points that are not finite are left out.
        title: heading, also read out by screen readers.
        x_label: what x counts.
        marked: a point to point out with its value.
        from_zero: let the y axis begin at 0.

    Returns:
        HTML; empty where no line has a point.
    """
    thinned = [Line(line.name, thin(finite(line.points))) for line in lines]
    drawn = [line for line in thinned if line.points]
    if not drawn:
        return ""
    points = [point for line in drawn for point in line.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks = nice_ticks(min(xs), max(xs), 5)
    y_ticks = nice_ticks(min(0.0, *ys) if from_zero else min(ys), max(ys), 5)
    x_axis = Axis(min(xs), max(*xs, min(xs) + 1e-9), _LEFT, _WIDTH - _RIGHT)
    y_axis = Axis(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    body = [
        *(_y_tick(tick, y_axis) for tick in y_ticks),
        *(_x_tick(tick, x_axis) for tick in x_ticks if x_axis.low <= tick <= x_axis.high),
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" '
        f'text-anchor="middle">{escape(x_label)}</text>',
        *(_path(line, place, x_axis, y_axis) for place, line in enumerate(drawn)),
        _mark(marked, x_axis, y_axis) if marked else "",
    ]
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(body)}</svg>{_legend(drawn)}</figure>"
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round values (1, 2, 2.5 or 5 × 10ⁿ apart) that enclose [low, high]."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - max(0.5, abs(low) / 10), high + max(0.5, abs(high) / 10)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(nice for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(tick * step, 12) for tick in range(first, last + 1)]


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Replace neighboring points by their mean, so that at most `most` are left."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups]


def finite(points: Sequence[Point]) -> list[Point]:
    """Return the points without infinities and NaN."""
    return [point for point in points if all(map(math.isfinite, point))]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _color(place: int) -> str:
    return f"var(--line-{place % _COLOURS}, #2a6fdb)"


def _y_tick(tick: float, axis: Axis) -> str:
    y = axis.place(tick)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="tick" x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{short(tick)}</text>'
    )


def _x_tick(tick: float, axis: Axis) -> str:
    x, bottom = axis.place(tick), _HEIGHT - _BOTTOM
    return (
        f'<line class="grid" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>'
        f'<text class="tick" x="{x}" y="{bottom + 17}" text-anchor="middle">{short(tick)}</text>'
    )


def _path(line: Line, place: int, x_axis: Axis, y_axis: Axis) -> str:
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
    style = f'style="stroke:{_color(place)};fill:{_color(place)}"'
    dots = places if len(places) <= 12 else []
    circles = "".join(f'<circle cx="{x}" cy="{y}" r="2.5"/>' for x, y in dots)
    path = " ".join(f"{x},{y}" for x, y in places)
    return f'<g class="line" {style}><polyline points="{path}"/>{circles}</g>'


def _mark(point: Point, x_axis: Axis, y_axis: Axis) -> str:
    x, y = x_axis.place(point[0]), y_axis.place(point[1])
    anchor = "end" if x > (_LEFT + _WIDTH) / 2 else "start"
    shift = -9 if anchor == "end" else 9
    below = y < (_TOP + _HEIGHT) / 2
    return (
        f'<circle class="mark" cx="{x}" cy="{y}" r="5"/><text class="mark" x="{x + shift}" '
        f'y="{y + (18 if below else -9)}" text-anchor="{anchor}">best {score(point[1])}</text>'
    )


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    entries = "".join(
        f'<li><i style="background:{_color(place)}"></i>{escape(line.name)}</li>'
        for place, line in enumerate(lines)
    )
    return f'<ul class="legend">{entries}</ul>'
