"""Pieces of HTML that sections of the page are made of; text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def section(title: str, note: str, body: str) -> str:
    """Return a section of the page; `note` says how to read it, `body` is HTML."""
    lead = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values, empty without rows."""
    cells = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return f'<div class="table"><table>{cells}</table></div>' if cells else ""


def wide_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column names its rows."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    cells = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td class="number">{escape(value)}</td>' for value in values)
        + "</tr>"
        for name, *values in rows
    )
    return f'<div class="table"><table><tr>{head}</tr>{cells}</table></div>'
