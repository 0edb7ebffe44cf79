"""One HTML page about a run that needs nothing but itself: no network, no other files.

Each section is a function that returns HTML, empty where a run has nothing to show in it.
"""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from PIL import Image

from t2i_hpc.evaluation.judges import GAMED
from t2i_hpc.evaluation.scores import (
    ScoreCurve,
    beside_real,
    measured,
    scale_of,
    score_curves,
    score_text,
)
from t2i_hpc.reporting.charts import Line, Point, line_chart
from t2i_hpc.reporting.markup import section, table
from t2i_hpc.reporting.run_record import Frame, RunRecord
from t2i_hpc.reporting.run_status import duration
from t2i_hpc.reporting.step_sections import X_LABEL, gradients, numbers_by_name, times
from t2i_hpc.training.callbacks.caption_sensitivity import ADVICE, stays_near_zero

_MOST_FRAMES = 8
_LARGEST_PNG = 600_000  # bytes; larger grids are shown as WebP of at most this width
_WIDEST = 1600
# Field of the record; title, name of each picture, how to read it.
_PICTURES = (
    (
        "stages",
        "Stages",
        "Stages",
        "The images of all stages of the generator, each made of the features of the one before.",
    ),
    (
        "words",
        "Words that the stages read",
        "Words",
        "For each stage after the first the five words that it reads most: a word is read where "
        "the picture is bright; the number is its share of all reading.",
    ),
    (
        "nearest",
        "Nearest training images",
        "Nearest training images",
        "The generated images that lie nearest to a training image in the detector's features, "
        "each left of that image; the number is their distance, a star says that it counts as "
        "memorized.",
    ),
    (
        "diversity",
        "Images of one caption",
        "Images of one caption",
        "A row shows images of one caption that differ in noise alone, from the least diverse "
        "caption to the most diverse one; the number is the row's diversity.",
    ),
    (
        "masks",
        "Semantic masks",
        "Masks",
        "The picture and the masks of the generator's blocks, from coarse to fine: text changes "
        "the features where a mask is white.",
    ),
    (
        "attention",
        "Attention",
        "Attention",
        "Held-out pictures and the five words of their captions that are attended to most: a "
        "word looks where its picture is bright. 1x would be even attention, 10x is ten times as "
        "much at the brightest place.",
    ),
)


def render(record: RunRecord) -> str:
    """Return the page: headline, samples, scores, masks, losses, gradients, speed, what made it.

    Styles, script, charts and pictures are inline; text of the run is escaped. Without scripts
    all pictures stand below each other.
    """
    curves = score_curves(record.scores)
    body = [
        header(record),
        cards(record, curves),
        samples(record),
        caption_sensitivity(record),
        overfitting(record),
        trained_by_scores(record),
        score_section(curves),
        *(pictures(getattr(record, kind), kind, *texts) for kind, *texts in _PICTURES),
        losses(record),
        gradients(record),
        speed(record),
        times(record),
        provenance(record),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(record.name)}</title>\n<style>\n{_text('page.css')}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main>\n"
        f"<script>\n{_text('page.js')}</script></body></html>\n"
    )


def header(record: RunRecord) -> str:
    """Title and one sentence about what was trained on what."""
    side, data = record.setting("system.resolution"), record.setting("data.name")
    system = str(record.setting("system.name") or record.setting("system.schema") or "GAN")
    what = f"A text-to-image generator ({system.replace('_', '-').upper()})"
    what += f" of {side} x {side} px" if side else ""
    if record.attention:
        what = f"Text and image encoders ({system.upper()})"
        what += f" on pictures of {side} x {side} px" if side else ""
    what += f", trained on the data set “{data}”" if data else ""
    created = str(record.info.get("created", "")).replace("T", " ").replace("+00:00", " UTC")
    world = record.info.get("world")
    made = [text for text in (created, str(record.info.get("hardware", ""))) if text]
    made += [f"{world} rank{'s' if world != 1 else ''}"] if world else []
    return (
        f"<header><h1>{escape(record.name)}</h1><p>{escape(what)}.</p>"
        f"<p>{escape(' · '.join(made))}</p></header>"
    )


def cards(record: RunRecord, curves: Sequence[ScoreCurve]) -> str:
    """The headline numbers: best score with its N, length and speed of the training."""
    items = []
    if curves:
        curve = curves[0]
        best = curve.best
        against = f" against {curve.n_real:,}" if curve.n_real else ""
        text = f"{curve.metric}, {curve.n:,} images{against}, best of the run"
        text += f" (after {best.images:,} training images)"
        value = measured(curve.metric, best.value, best.std) + beside_real(best.over_real)
        items.append(_card(value, text, "main"))
    items.append(_card(f"{record.images:,}", "images seen in training"))
    if record.metrics:
        seconds = float(record.metrics[-1].get("seconds", 0))
        items.append(_card(duration(seconds), "time in training"))
    speeds = _column(record, "images_per_second")
    if speeds:
        items.append(_card(f"{statistics.median(speeds):,.1f}", "images a second (median)"))
    return f'<ul class="cards">{"".join(items)}</ul>'


def samples(record: RunRecord) -> str:
    """Sample grids over time with a slider, which is only there where scripts run."""
    if not record.samples:
        return ""
    captions = "".join(f"<li>{escape(str(caption))}</li>" for caption in record.captions)
    listed = f"<details><summary>Captions as text</summary><ol class='captions'>{captions}</ol>"
    return section(
        "Samples over time",
        "Rows are captions, columns are noise; the same ones at every moment.",
        _frames(record.samples, "Samples") + (f"{listed}</details>" if captions else ""),
    )


def caption_sensitivity(record: RunRecord) -> str:
    """A chart of how far words steer the samples, and a warning where they do not."""
    values = record.sensitivities
    if not values:
        return ""
    warning = f"Warning: {ADVICE}." if stays_near_zero(list(values.values())) else ""
    points = [(float(images), value) for images, value in values.items()]
    chart = line_chart(
        [Line("caption sensitivity", points)],
        title="caption sensitivity",
        x_label=X_LABEL,
        from_zero=True,
    )
    note = (
        "How far a picture moves when only its caption changes, over how far when only the noise "
        "does (root mean squares over pixels): near 0 the rows of a grid show the same pictures."
    )
    shown = f'<p class="note"><b>{escape(warning)}</b></p>' if warning else ""
    return section("Caption sensitivity", note, f'{shown}<div class="charts">{chart}</div>')


def overfitting(record: RunRecord) -> str:
    """A chart of whether the discriminator knows its training images by heart."""
    lines = [
        Line(title, [(float(r["images"]), float(r["samples"][name])) for r in rows])
        for title, name in (("r_t", "real_sign"), ("r_v", "held_out_gap"))
        if (rows := [row for row in record.metrics if name in (row.get("samples") or {})])
    ]
    if not lines:
        return ""
    chart = line_chart(lines, title="overfitting of the discriminator", x_label=X_LABEL)
    note = (
        "r_t is the mean sign of the logits of training images; r_v is 0 where held-out images get "
        "the logits of training images, 1 where they get those of generated ones (ADA). Near 1 the "
        "training images are known by heart: system.augmentation helps."
    )
    return section("Overfitting", note, f'<div class="charts">{chart}</div>')


def trained_by_scores(record: RunRecord) -> str:
    """A warning where scores are what the generator was trained on."""
    if not record.setting("system.fd_weight"):
        return ""
    return f'<p class="note"><b>Warning: {escape(GAMED)}.</b></p>'


def score_section(curves: Sequence[ScoreCurve]) -> str:
    """A chart and a caution for each group of scores that may be compared, and their table."""
    parts = "".join(f"<div>{_score_part(curve)}</div>" for curve in curves)
    body = f'<div class="charts">{parts}</div>{score_table(curves)}'
    return section("Score over training", "", body) if parts else ""


def _score_part(curve: ScoreCurve) -> str:
    """A chart where there is more than one score, else a card; and how to read it."""
    best = curve.best
    title = f"{curve.metric}, N = {curve.n:,}"
    if len(curve.scores) > 1:
        scale, unit = scale_of(curve.metric)
        points = [(score.images, score.value * scale) for score in curve.scores]
        bars = [None if score.std is None else score.std * scale for score in curve.scores]
        line = Line(curve.metric, points, bars)
        marked = (float(best.images), best.value * scale)
        title += f" (in{unit})" * bool(unit)
        shown = line_chart([line], title=title, x_label=X_LABEL, marked=marked)
    else:
        text = f"{title}, after {best.images:,} training images"
        value = measured(curve.metric, best.value, best.std) + beside_real(best.over_real)
        shown = f'<ul class="cards">{_card(value, text)}</ul>'
    better = "Lower" if curve.lower_is_better else "Higher"
    detector = f" Detector: {curve.detector}." if curve.detector else ""
    note = f"{better} is better. {_best_text(curve)}{curve.caution}{detector}"
    return f'{shown}<p class="note">{escape(note)}</p>{_protocol(curve)}'


def _best_text(curve: ScoreCurve) -> str:
    """Return which of several checkpoints is best, and by how much real images are better."""
    best, said = curve.best, ""
    if len(curve.scores) > 1:
        value = measured(curve.metric, best.value, best.std)
        said = f"Best checkpoint: {value} after {best.images:,} training images"
        said += f" ({best.checkpoint[:12]}). " if best.checkpoint else ". "
    if best.real:
        said += f"Real images have a distance of {score_text(best.real)} from other real images. "
    return said


def score_table(curves: Sequence[ScoreCurve]) -> str:
    """Return a folded table of all scores; the best of those that may be compared say so."""
    names = ("metric", "value", "training images", "N", "N real", "protocol", "checkpoint", "")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{escape(curve.metric)}</td>"
        f'<td class="number">{measured(curve.metric, score.value, score.std)}'
        f"{beside_real(score.over_real)}</td>"
        f'<td class="number">{score.images:,}</td><td class="number">{curve.n:,}</td>'
        f'<td class="number">{curve.n_real:,}</td><td>{escape(protocol_title(curve))}</td>'
        f"<td>{escape(str(score.checkpoint)[:12])}</td>"
        f"<td>{'best' * (score is curve.best)}</td></tr>"
        for curve in curves
        for score in curve.scores
    )
    table = f'<div class="table"><table><tr>{head}</tr>{rows}</table></div>'
    return f'<details class="all-scores"><summary>All scores</summary>{table}</details>'


def protocol_title(curve: ScoreCurve) -> str:
    """Return a protocol's name, where it has one, and its hash."""
    return f"{curve.name} {curve.protocol}".strip()


def _protocol(curve: ScoreCurve) -> str:
    rows = [(key.replace("_", " "), str(value)) for key, value in _pairs(curve.text)]
    summary = f"Protocol {escape(protocol_title(curve))}"
    return f"<details><summary>{summary}</summary>{table(rows)}</details>" if rows else ""


def pictures(frames: Sequence[Frame], kind: str, title: str, name: str, note: str) -> str:
    """Pictures over time, and how to read them."""
    return section(title, note, _frames(frames, name, kind)) if frames else ""


def losses(record: RunRecord) -> str:
    """One chart for each phase of the training step, one line for each of its terms."""
    phases: dict[str, dict[str, list[Point]]] = {}
    for name, points in numbers_by_name(record, "losses").items():
        phase, _, term = name.rpartition("/")
        phases.setdefault(phase or "loss", {})[term] = points
    charts = [
        line_chart(
            [Line(term, points) for term, points in terms.items()],
            title=phase.replace("_", " ").replace("/", ", "),
            x_label=X_LABEL,
        )
        for phase, terms in phases.items()
    ]
    body = f'<div class="charts">{"".join(charts)}</div>'
    return section("Losses", "One chart a phase of the training step.", body) if charts else ""


def speed(record: RunRecord) -> str:
    """Images a second over the training, and how much of the time was spent waiting for data."""
    rows = [row for row in record.metrics if "images_per_second" in row]
    points = [(float(row["images"]), float(row["images_per_second"])) for row in rows]
    waits = _column(record, "data_wait")
    chart = line_chart(
        [Line("images a second", points)],
        title="images a second",
        x_label=X_LABEL,
        from_zero=True,
    )
    wait = (
        f"Waiting for data took {100 * statistics.fmean(waits):.1f} % of the time." if waits else ""
    )
    return section("Speed", wait, f'<div class="charts">{chart}</div>') if chart else ""


def provenance(record: RunRecord) -> str:
    """What made the run: versions, commit, hardware, and the whole configuration."""
    info = record.info
    rows = [("hardware", info.get("hardware")), ("ranks", info.get("world"))]
    rows += [(key, value) for part in ("git", "versions") for key, value in _pairs(info.get(part))]
    made_of = table([(name, str(value)) for name, value in rows if value not in (None, "")])
    config = f"<pre>{escape(record.config_text)}</pre>"
    body = made_of + f"<details><summary>Configuration</summary>{config}</details>"
    return section("How it was made", "", body)


def data_uri(frame: Frame) -> str:
    """Return a picture as a data URI; large ones smaller and as WebP, for the page alone."""
    content = frame.path.read_bytes()
    if len(content) <= _LARGEST_PNG:
        return "data:image/png;base64," + base64.b64encode(content).decode()
    with Image.open(io.BytesIO(content)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((_WIDEST, 4 * _WIDEST), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def spread(frames: Sequence[Frame], most: int = _MOST_FRAMES) -> list[Frame]:
    """Return the first, the last and evenly spread ones between, at most `most`."""
    if len(frames) <= most:
        return list(frames)
    return [frames[round(place * (len(frames) - 1) / (most - 1))] for place in range(most)]


def _frames(frames: Sequence[Frame], name: str, kind: str = "") -> str:
    figures = "".join(_figure(frame, name) for frame in spread(frames))
    slider = (
        '<div class="slider" hidden><input type="range" min="0" step="1" '
        f'aria-label="{name} over time"><output></output></div>'
    )
    return f'<div class="frames {kind}">{slider}{figures}</div>'


def _figure(frame: Frame, name: str) -> str:
    label = f"after {frame.images:,} images"
    return (
        f'<figure data-label="{label}"><div class="scroll"><img alt="{name} {label}" '
        f'src="{data_uri(frame)}"></div><figcaption>{name} {label}</figcaption></figure>'
    )


def _card(number: str, text: str, kind: str = "") -> str:
    return f'<li class="{kind}"><b>{escape(number)}</b><span>{escape(text)}</span></li>'


def _pairs(value: object) -> list[tuple[str, object]]:
    return [(str(key), item) for key, item in value.items()] if isinstance(value, dict) else []


def _column(record: RunRecord, key: str) -> list[float]:
    return [float(row[key]) for row in record.metrics if isinstance(row.get(key), (int, float))]


def _text(name: str) -> str:
    return files("t2i_hpc.reporting").joinpath(name).read_text(encoding="utf-8")
