"""All pairs: few rows of settings in which every two values meet once.

What breaks is mostly the meeting of two settings, so rows that show every pair find nearly what
all combinations would. Combinations that a program refuses hide the other settings of their row:
they are kept out of the rows, and each gets a row of its own among plain settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

Row = dict[str, str]
Factors = Mapping[str, Sequence[str]]
Clause = Mapping[str, Sequence[str]]
Pair = frozenset[tuple[str, str]]


def covering_rows(factors: Factors, refused: Sequence[Clause]) -> list[Row]:
    """Return rows in which every pair of values that may meet does so; the same each time.

    Args:
        factors: values by the name of what they set, the plain one first.
        refused: combinations that no row may hold, each as values by factor.
    """
    missing = dict.fromkeys(
        pair for pair in _pairs(factors) if not _is_refused(dict(pair), refused)
    )
    rows = []
    while missing:
        row = _completed(dict(next(iter(missing))), factors, refused, missing)
        rows.append(row)
        for pair in _pairs_of(row):
            missing.pop(pair, None)
    return rows


def refused_rows(factors: Factors, refused: Sequence[Clause]) -> list[Row]:
    """Return a row for every way to hold a refused combination, plain in everything else."""
    plain = {name: values[0] for name, values in factors.items()}
    return [
        plain | dict(zip(clause, values, strict=True))
        for clause in refused
        for values in product(*clause.values())
    ]


def _pairs(factors: Factors) -> Iterator[Pair]:
    for one, other in combinations(factors, 2):
        for values in product(factors[one], factors[other]):
            yield frozenset(zip((one, other), values, strict=True))


def _pairs_of(row: Row) -> Iterator[Pair]:
    return (frozenset(pair) for pair in combinations(row.items(), 2))


def _is_refused(row: Row, refused: Sequence[Clause]) -> bool:
    return any(all(row.get(k) in values for k, values in clause.items()) for clause in refused)


def _completed(
    row: Row, factors: Factors, refused: Sequence[Clause], missing: Mapping[Pair, None]
) -> Row:
    """Fill a row up, each time with the value that meets most of what it has for the first time.

    Raises:
        ValueError: a factor's plain value is refused with others, so a row may have no end.
    """
    row = dict(row)
    while len(row) < len(factors):
        offered = [
            (sum(frozenset({item, (name, value)}) in missing for item in row.items()), name, value)
            for name in factors
            if name not in row
            for value in factors[name]
            if not _is_refused({**row, name: value}, refused)
        ]
        if not offered:
            raise ValueError(f"nothing goes together with {row}")
        _, name, value = max(offered, key=lambda offer: offer[0])
        row[name] = value
    return {name: row[name] for name in factors}
