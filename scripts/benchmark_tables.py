"""Writes the tables of benchmarks/README.md from the rows in benchmarks/results, between their markers.

    python scripts/benchmark_tables.py            writes
    python scripts/benchmark_tables.py --check    exit code 1 when the page is not what the rows say
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
Row = dict[str, Any]


def read_rows(folder: Path) -> list[Row]:
    """All measured rows of the folder's .jsonl files, in the order of file names and lines."""
    rows = [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [row for row in rows if "skipped" not in row]


def lora_linear(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine and precision."""
    rows = list(rows)
    if not any(row["kind"] == "cuda" for row in rows):
        yield "On a GPU: not yet measured (`scripts/gpu_check.sh` measures it).\n"

    def machine(row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in ("device", "threads", "dtype", "torch", "triton", "peft", "commit"))

    for (device, threads, dtype, torch, triton, peft, commit), group in groupby(rows, machine):
        on = f"{threads} thread{'s' * (threads > 1)}, torch {torch}" if threads else f"torch {torch}, triton {triton}"
        against = f", PEFT {peft}" if peft else ""
        yield f"**{device}**, {dtype}, {on}{against}, commit {commit or 'unknown'}:\n"
        yield "| linear | tokens | adapters | | ms, median (p20–p80) | × frozen | frozen TFLOP/s |"
        yield "|---|--:|--:|---|--:|--:|--:|"
        for row in group:
            ms, ratio, tflops = row["ms"], row["ratio_to_frozen"]["p50"], row["frozen_tflops"]
            yield (
                f"| {row['in']} → {row['out']} | {row['tokens']} | {row['adapters']} | {row['candidate']} "
                f"| {ms['p50']:.2f} ({ms['p20']:.2f}–{ms['p80']:.2f}) | {ratio:.2f} | {tflops:.3g} |"
            )
        yield ""


def numbers(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine."""

    def machine(row: Row) -> tuple[Any, ...]:
        return row["device"], row["commit"], row["sentences"], row["numbers"]

    for (device, commit, sentences, count), group in groupby(rows, machine):
        yield f"**{device}**, {sentences} sentences, {count} numbers, commit {commit or 'unknown'}:\n"
        yield "| | precision | recall | F1 | fails on | MB/s |"
        yield "|---|--:|--:|--:|--:|--:|"
        for row in group:
            yield (
                f"| {row['candidate']} {row['version']} | {row['precision']:.3f} | {row['recall']:.3f} "
                f"| {row['f1']:.3f} | {row['errors']} | {row['megabytes_per_second']:.2f} |"
            )
        yield ""


TABLES: dict[str, Callable[[Iterable[Row]], Iterable[str]]] = {"lora_linear": lora_linear, "numbers": numbers}
"""Name of a benchmark, in its rows and in the page's markers → its tables."""


def render(page: str, rows: Sequence[Row]) -> str:
    """The page with every marked part rewritten. ValueError when a table has no place."""
    for name, table in TABLES.items():
        text = "\n".join(table(row for row in rows if row["bench"] == name)).rstrip("\n")
        start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        page, count = re.subn(
            f"{re.escape(start)}.*?{re.escape(end)}", lambda _, s=f"{start}\n{text}\n{end}": s, page, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"the page must have {start} … {end} once, it has it {count} times")
    return page


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is out of date")
    check = parser.parse_args().check
    path = BENCHMARKS / "README.md"
    page = path.read_text(encoding="utf-8")
    rendered = render(page, read_rows(BENCHMARKS / "results"))
    if check and rendered != page:
        sys.exit("benchmarks/README.md is not what the rows say; run python scripts/benchmark_tables.py")
    if not check:
        path.write_text(rendered, encoding="utf-8")


if __name__ == "__main__":
    main()
