"""Plain tables for terminals and logs."""

from __future__ import annotations

from collections.abc import Container, Sequence


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
