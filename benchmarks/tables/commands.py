"""Tables of what the commands do: training, loading, generation, evaluation, merging, finding numbers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from itertools import groupby

from .rows import Row, grouped, measured, spread, where

NUMCT = {"numbers": "numbers found", "default": "questions, default", "larger": "questions, larger set"}

LARGER = {"7B, 15.2 GB": 15.2e9, "70B, 141 GB": 141e9}
"""Bytes of Qwen2.5-7B and Llama-3-70B in bf16."""


def numbers(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine."""
    yield from grouped(
        rows, lambda row: where(row, f"{row['sentences']} sentences", f"{row['numbers']} numbers"),
        ("", "precision:", "recall:", "F1:", "fails on:", "MB/s:"),
        lambda row: (
            f"{row['candidate']} {row['version']}", *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")),
            row["errors"], f"{row['megabytes_per_second']:.2f}",
        ),
    )


def numct(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine."""
    def figures(row: Row) -> tuple[object, ...]:
        median = statistics.median(row["seconds"])
        rates = [row["count"] / seconds for seconds in (row["seconds"][-1], median, row["seconds"][0])]
        return (
            NUMCT[row["task"]], row["candidate"], f"{row['count']:,}", row["processes"], f"{median:.2f}",
            f"{rates[1]:,.0f} ({rates[0]:,.0f}–{rates[2]:,.0f})",
            f"{row['megabytes'] / median:.1f}" if row["megabytes"] else "", f"{1 / row['ratio_to_source']:.2f}",
        )

    yield from grouped(
        rows, where, ("", "", "count:", "processes:", "s:", "a second (least–most):", "MB/s:", "× source:"), figures,
    )


def train(rows: Iterable[Row]) -> Iterable[str]:
    """Two tables a machine: a joint step against two, and losses beside PEFT's."""
    rows = list(rows)
    yield from measured(rows, "Not yet measured.")
    for heading, group in groupby(rows, lambda row: where(row, f"{row['model']} in {row['dtype']}", peers=("peft",))):
        found = list(group)
        yield from grouped(
            (row for row in found if row["case"] == "joint"), lambda _, line=heading: line,
            ("a step of both adapters", "ms, median (p20–p80):", "× one after the other (p20–p80):"),
            lambda row: (row["candidate"], spread(row["ms"], 0), spread(row["ratio_to_apart"], 2)),
        )
        yield "| adapter | steps | first loss, numllm / PEFT | last ten, numllm / PEFT | difference |"
        yield "|---|--:|--:|--:|--:|"
        for row in (row for row in found if row["case"] == "peft"):
            first, last = row["first"], row["last"]
            yield (
                f"| {row['adapter']} | {row['steps']} | {first['numllm']:.4f} / {first['peft']:.4f} "
                f"| {last['numllm']:.4f} / {last['peft']:.4f} | {row['difference_percent']:+.4f} % |"
            )
        yield ""


def traffic(rows: Iterable[Row]) -> Iterable[str]:
    """One table a model."""
    rows = list(rows)
    yield from measured(rows, "Not yet measured.")
    yield from grouped(
        rows,
        lambda row: (
            f"**{row['model']}**, gloo, torch {row['torch']}, commit {row['commit'] or 'unknown'}; bytes of each "
            "process and step:\n"
        ),
        ("processes:", "given to all-reduces:", "sent, by the network card:", "a ring's 2 (N − 1) / N:"),
        lambda row: (row["processes"], *(f"{row[key]:,}" for key in ("given", "sent", "ring"))),
    )


def _of_shape(row: Row, *peers: str) -> str:
    """Heading of what was done to a whole checkpoint."""
    rounds = f"{row['rounds']} round{'s' * (row['rounds'] > 1)}"
    return where(row, f"{row['shape']}, {row['bytes'] / 1e9:.2f} GB bf16", rounds, peers=peers)


def load(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine and shape."""
    yield from grouped(
        rows, _of_shape, ("", "s, median (p20–p80):", "× load_file into own memory:", "CPU s:"),
        lambda row: (
            row["candidate"], spread(row["ms"], 3, 1000), spread(row["ratio_to_own"], 2),
            f"{row['cpu_ms']['p50'] / 1000:.3f}",
        ),
    )


def generate(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine."""
    rows = list(rows)
    yield from measured(
        rows, "On a GPU, where steps are replayed as a CUDA graph: not yet measured.", on_gpu=True
    )
    yield from grouped(
        rows, where,
        ("model", "dtype", "", "new tokens:", "", "s of its own:", "× transformers:", "by the clock:", "same tokens"),
        lambda row: (
            row["model"], row["dtype"], row["case"], row["new_tokens"], row["candidate"], f"{row['cpu_seconds']:.2f}",
            *(("–",) * 3 if row["same"] is None
              else (f"{row['cpu_ratio']:.2f}", f"{row['ratio']:.2f}", "yes" if row["same"] else "no")),
        ),
    )


def evaluation(rows: Iterable[Row]) -> Iterable[str]:
    """Up to three tables a run: the whole split, shared beginnings against none, and a plain transformers loop."""
    rows = list(rows)
    yield from measured(rows, "Not yet measured.")
    for heading, group in groupby(rows, lambda row: where(row, "float32")):
        yield heading
        cases: dict[str, list[Row]] = {}
        for row in group:
            cases.setdefault(row["case"], []).append(row)
        if "fineval" in cases:
            yield "| FinEval's val split on the demo's base | questions | s of its own | s by the clock |"
            yield "|---|--:|--:|--:|"
            for row in cases["fineval"]:
                shots = "five-shot" if row["shots"] else "zero-shot"
                yield f"| {shots} | {row['questions']:,} | {row['cpu_seconds']:.1f} | {row['seconds']:.1f} |"
            yield ""
        for case, first in (("prefix", "five-shot on the demo's base"), ("transformers", "a random model")):
            if case not in cases:
                continue
            yield f"| {first} | questions | | s of its own | × | largest difference |"
            yield "|---|--:|---|--:|--:|--:|"
            for shots, pair in groupby(cases[case], lambda row: row.get("shots", 5)):
                pair = list(pair)
                slow = max(row["cpu_seconds"] for row in pair)
                kind = "five-shot" if shots else "zero-shot"
                for row in pair:
                    what = kind if case == "prefix" else f"0.5B's shape, {row['layers']} layers, {kind}"
                    yield (
                        f"| {what} | {row['questions']} | {row['candidate']} | {row['cpu_seconds']:.1f} "
                        f"| {slow / row['cpu_seconds']:.2f} | {row['difference']:.0e} |"
                    )
            if case == "transformers" and {row["shots"] for row in cases[case]} == {0, 5}:
                ours, theirs = (
                    sum(row["cpu_seconds"] for row in cases[case] if row["candidate"] == name)
                    for name in ("numllm", "transformers loop")
                )
                yield f"\nBoth together: {ours:.1f} s against {theirs:.1f} s, {theirs / ours:.2f} times as fast."
            yield ""


def merge(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine and shape."""
    rows = list(rows)
    yield from measured(rows, "Not yet measured at full size.")
    yield from grouped(
        rows, lambda row: _of_shape(row, "peft"),
        ("", "s, median (p20–p80):", "× cp -r:", "processor, s:", "peak memory, MiB:"),
        lambda row: (
            row["candidate"], spread(row["ms"], 2, 1000), f"{row['ratio_to_copy']['p50']:.2f}",
            f"{row['cpu_seconds']:.2f}", row["peak_bytes"] >> 20,
        ),
    )


def merge_in_short(rows: Iterable[Row]) -> Iterable[str]:
    """The full-size shapes on the machine where they were measured with most rounds."""
    full = sorted((row for row in rows if row["shape"] != "small"), key=lambda row: (-row["rounds"], row["bytes"]))
    if not full:
        yield "Not yet measured at full size."
        return
    full = [row for row in full if row["device"] == full[0]["device"]]
    shapes = {row["shape"]: row["bytes"] for row in full}
    found: dict[tuple[str, str], Row] = {}
    for row in full:  # those of most rounds first
        found.setdefault((row["candidate"], row["shape"]), row)
    yield "| | " + " | ".join(f"{size / 1e9:.1f} GB: s | × cp -r | MiB" for size in shapes.values()) + " |"
    yield "|---|" + "--:|--:|--:|" * len(shapes)
    for candidate in dict.fromkeys(row["candidate"] for row in full):
        cells = [
            f"{row['ms']['p50'] / 1000:.1f} | {row['ratio_to_copy']['p50']:.1f} | {row['peak_bytes'] >> 20}"
            if (row := found.get((candidate, shape))) else "– | – | –" for shape in shapes
        ]
        yield f"| {candidate} | {' | '.join(cells)} |"
    row = full[0]
    yield (
        f"\nMedians of {' or '.join(dict.fromkeys(str(row['rounds']) for row in full))} rounds; {row['device']}, "
        f"{row['threads']} threads, torch {row['torch']}, commit {row['commit']}."
    )


_LARGER = ("cp -r", "numllm exact", "numllm exact, first", "numllm svd", "numllm svd, first")


def merge_of_larger(rows: Iterable[Row]) -> Iterable[str]:
    """Seconds of larger checkpoints, in proportion to bytes, from the largest measured."""
    repeated = [row for row in rows if row["rounds"] > 1]
    if not repeated:
        yield "Not yet measured."
        return
    largest = max(row["bytes"] for row in repeated)
    yield f"| reckoned from {largest / 1e9:.1f} GB | " + " | ".join(LARGER) + " |"
    yield "|---|" + "--:|" * len(LARGER)
    for row in repeated:
        if row["bytes"] == largest and row["candidate"] in _LARGER:
            cells = [f"{row['ms']['p50'] / 1000 * size / largest:,.0f} s" for size in LARGER.values()]
            yield f"| {row['candidate']} | {' | '.join(cells)} |"
