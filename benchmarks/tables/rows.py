"""Rows as they stand in benchmarks/results, and what tables of every kind are made with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

__all__ = ["Row", "Table", "grouped", "measured", "read_rows", "render", "run", "spread", "where"]

Row = dict[str, Any]
Table = Callable[[Iterable[Row]], Iterable[str]]

SUBJECTS = ("ablation", "demo", "families", "numeric_losses", "orthogonality")
"""Files without a device in their names: written anew by their programs, whole."""
_PEERS = {"transformers": "transformers", "peft": "PEFT"}


def read_rows(folder: Path) -> list[Row]:
    """The measured rows of the folder's .jsonl files in the order of names and lines; of a device's the last run's."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*.jsonl")):
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows += [row for row in found if "skipped" not in row and (path.stem in SUBJECTS or run(row) == run(found[-1]))]
    return rows


def run(row: Row) -> tuple[Any, ...]:
    """What the rows of one run of a program have in common."""
    return row["commit"], row["date"]


def spread(quantiles: Mapping[str, float], digits: int, scale: float = 1) -> str:
    """"median (p20–p80)", each divided by `scale`."""
    low, middle, high = (f"{quantiles[name] / scale:.{digits}f}" for name in ("p20", "p50", "p80"))
    return f"{middle} ({low}–{high})"


def measured(rows: Iterable[Row], missing: str, *, on_gpu: bool = False) -> Iterator[str]:
    """The line `missing` when there are no rows, with on_gpu when there are none of a GPU."""
    if not any(row["kind"] == "cuda" or not on_gpu for row in rows):
        yield missing + "\n"


def where(row: Row, *what: str, peers: Sequence[str] = ()) -> str:
    """The line above a table: device, what was measured, versions of torch and of the peers, commit."""
    threads = row["threads"]
    on = [f"{threads} thread{'s' * (threads > 1)}"] if threads else []
    versions = [f"{_PEERS[name]} {row[name]}" for name in peers if row.get(name)]
    if row["kind"] == "cuda" and row["triton"]:
        versions.insert(0, f"triton {row['triton']}")
    parts = [f"**{row['device']}**", *what, *on, f"torch {row['torch']}", *versions]
    return f"{', '.join(parts)}, commit {row['commit'] or 'unknown'}:\n"


def grouped(
    rows: Iterable[Row], heading: Callable[[Row], str], columns: Sequence[str], cells: Callable[[Row], Iterable[Any]],
) -> Iterator[str]:
    """A table for each run of rows with one `heading`.

    columns: names of the columns, those of numbers with a colon behind. cells: a row's, in the order of `columns`.
    """
    for line, group in groupby(rows, heading):
        yield line
        yield f"| {' | '.join(name.removesuffix(':') for name in columns)} |".replace("|  |", "| |")
        yield f"|{'|'.join('--:' if name.endswith(':') else '---' for name in columns)}|"
        for row in group:
            yield f"| {' | '.join(map(str, cells(row)))} |"
        yield ""


def render(page: str, tables: Mapping[str, Table], rows: Sequence[Row]) -> str:
    """The page with every marked part rewritten. ValueError when a table has no place."""
    for name, table in tables.items():
        text = "\n".join(table(row for row in rows if row["bench"] == name)).rstrip("\n")
        start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        page, count = re.subn(
            f"{re.escape(start)}.*?{re.escape(end)}", lambda _, s=f"{start}\n{text}\n{end}": s, page, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"the page must have {start} … {end} once, it has it {count} times")
    return page
