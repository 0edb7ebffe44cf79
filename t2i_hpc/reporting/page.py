"""One HTML page about a run that needs nothing but itself: no network, no files beside it."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from t2i_hpc.reporting import sections, stage_sections
from t2i_hpc.reporting.record import RunRecord
from t2i_hpc.reporting.scores import score_curves


def render(record: RunRecord) -> str:
    """Return the page: headline, samples, scores, stages, masks, losses, speed, how it was made.

    Styles, script, charts and pictures are inline; text of the run is escaped. Without scripts
    all pictures stand below each other.
    """
    curves = score_curves(record.scores)
    body = [
        sections.header(record),
        sections.cards(record, curves),
        sections.samples(record),
        sections.score_section(curves),
        stage_sections.stages(record),
        stage_sections.words(record),
        sections.masks(record),
        sections.attention(record),
        sections.losses(record),
        sections.speed(record),
        sections.provenance(record),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(record.name)}</title>\n<style>\n{_text('page.css')}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main>\n"
        f"<script>\n{_text('page.js')}</script></body></html>\n"
    )


def _text(name: str) -> str:
    return files("t2i_hpc.reporting").joinpath(name).read_text(encoding="utf-8")
