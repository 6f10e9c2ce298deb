"""Plain and Markdown tables, aligned for Chinese too."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Columns = Sequence[str] | Mapping[str, str]
"""Keys of the rows, in order, or key → heading."""


def width(text: str) -> int:
    """Columns a text takes in a terminal: wide (Chinese, full-width) characters two, combining marks none."""
    return sum(
        0 if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn")
        else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())


def _cells(
    rows: Iterable[Mapping[str, Any]], columns: Columns
) -> tuple[list[str], list[list[str]], list[bool]]:
    """(headings, cells, whether each column is of figures)."""
    if not columns:
        raise ValueError("a table needs at least one column")
    heads = list(columns.values()) if isinstance(columns, Mapping) else list(columns)
    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    figures = [
        bool(cells) and all(row[c][:1] in "+-−–.0123456789" for row in cells if row[c])
        for c in range(len(heads))
    ]
    return heads, cells, figures


def table(rows: Iterable[Mapping[str, Any]], columns: Columns) -> str:
    """A plain text table: a heading, a rule, a line a row; figures to the right, aligned for Chinese too.

    Missing values show as "–", floats with four digits. Lines carry no spaces at their end.
    """
    heads, cells, figures = _cells(rows, columns)
    widths = [max(map(width, column)) for column in zip(heads, *cells, strict=True)]

    def line(values: Sequence[str]) -> str:
        padded = (
            " " * (wide - width(value)) + value if right else value + " " * (wide - width(value))
            for value, wide, right in zip(values, widths, figures, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(heads), "  ".join("─" * wide for wide in widths), *map(line, cells)])


def markdown_table(rows: Iterable[Mapping[str, Any]], columns: Columns) -> str:
    """The same as a Markdown table; pipes are escaped, figures are aligned to the right."""
    heads, cells, figures = _cells(rows, columns)

    def line(values: Iterable[str]) -> str:
        return "| " + " | ".join(value.replace("\\", "\\\\").replace("|", "\\|") for value in values) + " |"

    rule = "|" + "|".join(" ---: " if right else " --- " for right in figures) + "|"
    return "\n".join([line(heads), rule, *map(line, cells)])


def percent(share: float | None) -> str:
    """0.345 → "34.5 %"."""
    return "–" if share is None else f"{100 * share:.1f} %"


def interval(bounds: Iterable[float] | None) -> str:
    """(0.31, 0.38) → "31.0–38.0"."""
    return "–" if bounds is None else "–".join(f"{100 * bound:.1f}" for bound in bounds)


def accuracy(tally: Mapping[str, Any] | None) -> str:
    """"34.5 % (31.0–38.0)" of a tally with n, accuracy and ci95."""
    return "–" if not tally or not tally["n"] else f"{percent(tally['accuracy'])} ({interval(tally['ci95'])})"
