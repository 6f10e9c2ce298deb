"""Tables of the method: the demo, the ablation, ways to train an adapter, the families that load."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from numllm import demo as demo_tables
from numllm.report import markdown_table

from .rows import Row


def demo(rows: Iterable[Row]) -> Iterable[str]:
    """The stages and tables of the first seed, and how all seeds spread."""
    rows = list(rows)
    first = rows[0]
    yield "\n".join(["```", *map(demo_tables.stage_line, first["stages"]), "```\n"])
    for shown in demo_tables.tables(first):
        yield markdown_table(shown, list(shown[0])) + "\n"
    yield f"Points against the base over the seeds {', '.join(str(row['seed']) for row in rows)}, mean (each):\n"
    spread: dict[str, dict[str, str]] = {}
    for place, row in enumerate(rows[0]["comparisons"]):
        points = [run["comparisons"][place]["difference_points"] for run in rows]
        cell = f"{statistics.mean(points):+.1f} ({', '.join(f'{value:+.1f}' for value in points)})"
        spread.setdefault(row["model"], {"model": row["model"]})[row["questions"].replace("_", "-")] = cell
    for place, model in enumerate(rows[0]["models"]):
        if model["name"] in spread:
            values = [run["models"][place]["perplexity"] for run in rows]
            spread[model["name"]]["perplexity"] = ", ".join(f"{value:.1f}" for value in values)
    shown = list(spread.values())
    yield markdown_table(shown, list(shown[0])) + "\n"
    where = f"{first['device']}, {first['threads']} threads, torch {first['torch']}, commit {first['commit']}"
    yield f"Measured on {where}."


def ablation(rows: Iterable[Row]) -> Iterable[str]:
    """One table a base."""
    for row in rows:
        yield markdown_table(row["rows"], list(row["rows"][0])) + "\n"
        weights = " and ".join(f"{value:g} ({name})" for name, value in row["weights"].items())
        yield (
            f"Seeds {', '.join(map(str, row['seeds']))}; weights of the adapters together {weights}; "
            f"{row['device']}, {row['threads']} threads, torch {row['torch']}, commit {row['commit']}."
        )


def numeric_losses(rows: Iterable[Row]) -> Iterable[str]:
    """One table: a line a way to train the numeric adapter."""
    rows = list(rows)
    if not rows:
        yield "Not yet measured."
        return

    def cells(part: Row) -> str:
        low, high = part["ci95_points"]
        spread = "" if part["spread"] is None else f" ± {100 * part['spread']:.1f}"
        return f"{100 * part['accuracy']:.1f} %{spread} | {part['difference_points']:+.1f} ({low:+.1f} to {high:+.1f})"

    yield "| trained by | questions | likelihood | gain | letters | gain | perplexity |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        yield (
            f"| {row['way']} | {row['training_questions']} | {cells(row['likelihood'])} | {cells(row['letters'])} "
            f"| {', '.join(f'{value:.0f}' for value in row['perplexity'])} |"
        )
    row = rows[0]
    yield (
        f"\n{row['steps']} steps, seeds {', '.join(map(str, row['seeds']))}, {row['questions']} questions; perplexity "
        f"of the base {row['base_perplexity']:.0f}; {row['device']}, torch {row['torch']}, commit {row['commit']}."
    )


def orthogonality(rows: Iterable[Row]) -> Iterable[str]:
    """One table: a line a weight of the penalty."""
    rows = sorted(rows, key=lambda row: row["weight"])
    if not rows:
        yield "Not yet measured."
        return
    yield "| weight | shared in | shared out | cosine | numeric | points from weight 0 (95 %) | perplexity |"
    yield "|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        low, high = row["ci95_points"]
        points = f"{row['difference_points']:+.1f} ({low:+.1f} to {high:+.1f})" if row["weight"] else "–"
        spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
        shared_in, shared_out, cosine = (
            statistics.mean(row[key]) for key in ("shared_input", "shared_output", "cosine")
        )
        yield (
            f"| {row['weight']:g} | {shared_in:.4f} | {shared_out:.3f} | {cosine:+.3f} "
            f"| {100 * row['accuracy']:.1f} %{spread} | {points} "
            f"| {', '.join(f'{value:.1f}' for value in row['perplexity'])} |"
        )
    row = rows[0]
    weights = " and ".join(f"{value:g} ({name})" for name, value in row["merge"].items())
    yield (
        f"\n{row['steps']} steps, seeds {', '.join(map(str, row['seeds']))}, {row['questions']} questions; weights of "
        f"the merge {weights}; {row['device']}, torch {row['torch']}, commit {row['commit']}."
    )


def families(rows: Iterable[Row]) -> Iterable[str]:
    """One table: a line a family."""
    rows = list(rows)

    def size(value: float) -> str:
        return f"{value:.0e}" if value else "0"

    yield "| family | original | logits | greedy tokens | long texts | tokenizer | adapters | merged |"
    yield "|---|---|--:|--:|---|---|--:|--:|"
    for row in rows:
        long = f"{row['scaling']}: {size(row['long'])}" if row["scaling"] else "–"
        ids = row["tokenizer"]
        same = f"{ids['original']}: {ids['texts'] - ids['different']}/{ids['texts']}" if ids else "–"
        yield (
            f"| {row['family']} | {row['original']} | {size(row['logits'])} | {row['greedy']}/32 | {long} | {same} "
            f"| {size(row['adapter'])} | {size(row['merge'])} |"
        )
    if rows:
        yield f"\nMeasured with torch {rows[0]['torch']}, PEFT {rows[0]['peft']}, commit {rows[0]['commit']}."
