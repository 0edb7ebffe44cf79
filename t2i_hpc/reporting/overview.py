"""One PNG of a run for READMEs: first and last samples side by side, and the score between."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from t2i_hpc.evaluation.scores import ScoreCurve, measured, score_curves
from t2i_hpc.reporting.run_record import Frame, RunRecord
from t2i_hpc.sampling.grids import PICTURES_LEFT

_WIDEST, _MARGIN, _GAP = 1600, 18, 22
_TITLE, _TEXT, _LINE = 22, 16, 24
_PAPER, _INK, _SOFT = (255, 255, 255), (25, 28, 33), (95, 102, 112)


@dataclass(frozen=True)
class Panel:
    """Samples of one moment: the picture, its label, and where its pictures begin."""

    picture: Image.Image
    label: str
    indent: int = 0

    def scaled(self, factor: float) -> Panel:
        """Return the panel with its picture scaled down."""
        size = (round(self.picture.width * factor), round(self.picture.height * factor))
        smaller = self.picture.resize(size, Image.Resampling.LANCZOS)
        return Panel(smaller, self.label, round(self.indent * factor))


def overview(record: RunRecord) -> Image.Image:
    """Return the picture; where a run has no samples or no scores, without them."""
    panels = _fitted(_panels(record))
    lines = [score_line(curve) for curve in score_curves(record.scores)[:2]]
    across = sum(panel.picture.width for panel in panels) + _GAP * (len(panels) - 1)
    widths = [_width(record.name, _TITLE), *(_width(line, _TEXT) for line in lines), across]
    tall = max((panel.picture.height + _LINE for panel in panels), default=0)
    below = 2 * _MARGIN + _LINE + tall
    size = (max(widths) + 2 * _MARGIN, below + _MARGIN + _LINE * len(lines))
    canvas = Image.new("RGB", size, _PAPER)
    _write(canvas, record.name, (_MARGIN, _MARGIN), _TITLE, _INK)
    _place(canvas, panels, top=_MARGIN + _LINE + _MARGIN // 2)
    for number, line in enumerate(lines):
        _write(canvas, line, (_MARGIN, below + _LINE * number), _TEXT, _INK)
    return canvas


def score_line(curve: ScoreCurve) -> str:
    """Return "FID 91.2 after 0 images, 33.1 after 51,200 (N = 1,000; …)"."""
    first, last = curve.scores[0], curve.scores[-1]
    value = measured(curve.metric, first.value)
    text = f"{curve.metric} {value} after {first.images:,} training images"
    if last is not first:
        text += f", {measured(curve.metric, last.value)} after {last.images:,}"
    better = "lower" if curve.lower_is_better else "higher"
    against = f" against {curve.n_real:,}" if curve.n_real else ""
    return f"{text}  (N = {curve.n:,}{against}, {better} is better)"


def _panels(record: RunRecord) -> list[Panel]:
    """Return the first samples with their captions and the last ones without.

    Encoders draw none; their attention maps stand in for them.
    """
    frames = record.samples or record.attention
    if not frames:
        return []
    first = _panel(frames[0])
    if len(frames) == 1:
        return [first]
    last = _panel(frames[-1])
    box = (last.indent, 0, last.picture.width, last.picture.height)
    return [first, Panel(last.picture.crop(box), last.label)]


def _panel(frame: Frame) -> Panel:
    with Image.open(frame.path) as opened:
        indent = int(opened.info.get(PICTURES_LEFT, 0))
        return Panel(opened.convert("RGB"), f"after {frame.images:,} images", indent)


def _fitted(panels: list[Panel]) -> list[Panel]:
    across = sum(panel.picture.width for panel in panels)
    return [p.scaled(_WIDEST / across) for p in panels] if across > _WIDEST else panels


def _place(canvas: Image.Image, panels: list[Panel], top: int) -> None:
    left = _MARGIN
    for panel in panels:
        _write(canvas, panel.label, (left + panel.indent, top), _TEXT, _SOFT)
        canvas.paste(panel.picture, (left, top + _LINE))
        left += panel.picture.width + _GAP


def _write(
    canvas: Image.Image, text: str, at: tuple[int, int], size: int, ink: tuple[int, int, int]
) -> None:
    ImageDraw.Draw(canvas).text(at, text, ink, ImageFont.load_default(size=size))


def _width(text: str, size: int) -> int:
    return round(ImageFont.load_default(size=size).getlength(text))
