"""Writes the tables and pictures of the READMEs from the rows in benchmarks/results, between their markers.

    python scripts/benchmark_tables.py            writes
    python scripts/benchmark_tables.py --check    exit code 1 when a page is not what the rows say
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import measure, roofline  # noqa: E402
from numllm import demo as demo_tables  # noqa: E402
from numllm.report import markdown_table  # noqa: E402

Row = dict[str, Any]


SUBJECTS = ("ablation", "demo", "families", "orthogonality")
"""Files without a device in their names: written anew by their programs, whole."""


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
                f"| {spread(ms, 2)} | {ratio:.2f} | {tflops:.3g} |"
            )
        yield ""


def blocks(rows: Iterable[Row]) -> Iterable[str]:
    """One table a GPU: what share of a copy's bandwidth each candidate reaches."""
    rows = [row for row in rows if row["kind"] == "cuda"]
    if not rows:
        yield "On a GPU: not yet measured."

    def machine(row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in ("device", "dtype", "torch", "triton", "commit"))

    for (device, dtype, torch, triton, commit), group in groupby(rows, machine):
        yield f"**{device}**, {dtype}, torch {torch}, triton {triton}, commit {commit or 'unknown'}:\n"
        yield "| forward + backward | MB | | ms, median (p20–p80) | GB/s | % of a copy |"
        yield "|---|--:|---|--:|--:|--:|"
        for row in group:
            yield (
                f"| {row['case']} | {row['bytes'] / 1e6:.0f} | {row['candidate']} | {spread(row['ms'], 3)} "
                f"| {row['gb_per_s']:.0f} | {100 * row['share_of_copy']['p50']:.0f} |"
            )
        yield ""


def loss(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine and shape."""
    rows = list(rows)
    if not any(row["kind"] == "cuda" for row in rows):
        yield "On a GPU: not yet measured.\n"

    def machine(row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in (
            "device", "threads", "dtype", "torch", "commit", "tokens", "vocabulary", "width",
        ))

    for (device, threads, dtype, torch, commit, tokens, vocabulary, width), group in groupby(rows, machine):
        where = f"{threads} thread{'s' * (threads > 1)}, " if threads else ""
        yield (
            f"**{device}**, {where}{dtype}, {tokens} tokens × {vocabulary} words × {width}, torch {torch}, commit "
            f"{commit or 'unknown'}:\n"
        )
        yield "| | ms, median (p20–p80) | × two products | extra memory, MB | TFLOP/s |"
        yield "|---|--:|--:|--:|--:|"
        for row in group:
            yield (
                f"| {row['candidate']} | {spread(row['ms'], 1)} | {row['ratio']['p50']:.2f} "
                f"| {row['peak_bytes'] / 1e6:.0f} | {row['tflops']:.3g} |"
            )
        yield ""


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
        took = f"; {row['seconds'] / 60:.1f} minutes" if row["seconds"] else ""
        yield (
            f"Seeds {', '.join(map(str, row['seeds']))}; weights of the adapters together {weights}{took} on "
            f"{row['device']}, {row['threads']} threads, torch {row['torch']}, commit {row['commit']}."
        )


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


def merge(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine and shape."""
    rows = list(rows)
    if not rows:
        yield "Not yet measured at full size."

    def machine(row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in ("device", "threads", "shape", "bytes", "rounds", "torch", "peft", "commit"))

    for (device, threads, shape, size, rounds, torch, peft, commit), group in groupby(rows, machine):
        yield (
            f"**{shape}**, {size / 1e9:.2f} GB bf16, {device}, {threads} thread{'s' * (threads > 1)}, {rounds} rounds, "
            f"torch {torch}, PEFT {peft}, commit {commit or 'unknown'}:\n"
        )
        yield "| | s, median (p20–p80) | × cp -r | processor, s | peak memory, MiB |"
        yield "|---|--:|--:|--:|--:|"
        for row in group:
            yield (
                f"| {row['candidate']} | {spread(row['ms'], 2, 1000)} "
                f"| {row['ratio_to_copy']['p50']:.2f} | {row['cpu_seconds']:.2f} | {row['peak_bytes'] >> 20} |"
            )
        yield ""


def train_step(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine."""
    rows = list(rows)
    if not any(row["kind"] == "cuda" for row in rows):
        yield "On a GPU: not yet measured (`scripts/gpu_check.sh` measures it).\n"

    def machine(row: Row) -> tuple[Any, ...]:
        kept = ("device", "threads", "torch", "peft", "commit", "layers")
        return *(row[key] for key in kept), row.get("transformers"), row.get("dtype", "float32")

    for (device, threads, torch, peft, commit, layers, transformers, dtype), group in groupby(rows, machine):
        on = f"{threads} thread{'s' * (threads > 1)}, torch {torch}" if threads else f"torch {torch}"
        against = f", transformers {transformers}, PEFT {peft}" if transformers else ""
        yield f"**{device}**, {layers} layers in {dtype}, {on}{against}, commit {commit or 'unknown'}:\n"
        yield (
            "| step | tokens | | ms, median (p20–p80) | tokens/s | 4 P, TFLOP/s | × the peer's speed (p20–p80) "
            "| peak memory, MiB |"
        )
        yield "|---|--:|---|--:|--:|--:|--:|--:|"
        for row in group:
            ms = row["ms"]
            speed = spread(row["speed"], 2) if row["speed"] else "–"
            flops = "–"
            if "flops" in row:
                flops = f"{row['flops'] / ms['p50'] / 1e9:.3g}" + (f" ({row['mfu']:.0%})" if row["mfu"] else "")
            yield (
                f"| {row['case']} | {row['tokens']} | {row['candidate']} | {spread(ms, 0)} "
                f"| {1000 * row['tokens'] / ms['p50']:,.0f} | {flops} | {speed} | {row['peak_bytes'] >> 20} |"
            )
        yield ""


def train(rows: Iterable[Row]) -> Iterable[str]:
    """Two tables a machine: a joint step against two, and losses beside PEFT's."""
    rows = list(rows)
    if not rows:
        yield "Not yet measured."

    def machine(row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in ("device", "threads", "model", "dtype", "torch", "peft", "commit"))

    for (device, threads, model, dtype, torch, peft, commit), group in groupby(rows, machine):
        found = list(group)
        on = f"{threads} thread{'s' * (threads > 1)}, " if threads else ""
        yield f"**{device}**, {on}{model} in {dtype}, torch {torch}, PEFT {peft}, commit {commit or 'unknown'}:\n"
        yield "| a step of both adapters | ms, median (p20–p80) | × one after the other (p20–p80) |"
        yield "|---|--:|--:|"
        for row in (row for row in found if row["case"] == "joint"):
            ms, ratio = row["ms"], row["ratio_to_apart"]
            yield (
                f"| {row['candidate']} | {spread(ms, 0)} "
                f"| {spread(ratio, 2)} |"
            )
        yield "\n| adapter | steps | first loss, numllm / PEFT | last ten, numllm / PEFT | difference |"
        yield "|---|--:|--:|--:|--:|"
        for row in (row for row in found if row["case"] == "peft"):
            first, last = row["first"], row["last"]
            yield (
                f"| {row['adapter']} | {row['steps']} | {first['numllm']:.4f} / {first['peft']:.4f} "
                f"| {last['numllm']:.4f} / {last['peft']:.4f} | {row['difference_percent']:+.4f} % |"
            )
        yield ""


def orthogonality(rows: Iterable[Row]) -> Iterable[str]:
    """One table: a line a weight and seed."""
    rows = sorted(rows, key=lambda row: (row["seed"], row["weight"]))
    if not rows:
        yield "Not yet measured."
        return
    yield "| weight | seed | shared in | shared out | cosine | numeric | points from weight 0 (95 %) | perplexity |"
    yield "|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        low, high = row["ci95"]
        points = f"{row['points']:+.1f} ({low:+.1f} to {high:+.1f})" if row["weight"] else "–"
        yield (
            f"| {row['weight']:g} | {row['seed']} | {row['shared_input']:.4f} | {row['shared_output']:.3f} "
            f"| {row['cosine']:+.3f} | {100 * row['accuracy']:.1f} % | {points} | {row['perplexity']:.2f} |"
        )
    row = rows[0]
    yield (
        f"\n{row['steps']} steps, {row['questions']} questions; {row['device']}, torch {row['torch']}, "
        f"commit {row['commit']}."
    )


def traffic(rows: Iterable[Row]) -> Iterable[str]:
    """One table a model."""
    rows = list(rows)
    if not rows:
        yield "Not yet measured."

    def run(row: Row) -> tuple[Any, ...]:
        return row["model"], row["torch"], row["commit"]

    for (model, torch, commit), group in groupby(rows, run):
        yield f"**{model}**, gloo, torch {torch}, commit {commit or 'unknown'}; bytes of each process and step:\n"
        yield "| processes | given to all-reduces | sent, by the network card | a ring's 2 (N − 1) / N |"
        yield "|--:|--:|--:|--:|"
        for row in group:
            yield f"| {row['processes']} | {row['given']:,} | {row['sent']:,} | {row['ring']:,} |"
        yield ""


def load(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine and shape."""

    def machine(row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in ("device", "threads", "shape", "bytes", "rounds", "torch", "commit"))

    for (device, threads, shape, size, rounds, torch, commit), group in groupby(rows, machine):
        yield (
            f"**{shape}**, {size / 1e9:.2f} GB bf16, {device}, {threads} thread{'s' * (threads > 1)}, {rounds} rounds, "
            f"torch {torch}, commit {commit or 'unknown'}:\n"
        )
        yield "| | CPU s, median (p20–p80) | × load_file into own memory | wall s |"
        yield "|---|--:|--:|--:|"
        for row in group:
            yield (
                f"| {row['candidate']} | {spread(row['cpu_ms'], 3, 1000)} | {spread(row['ratio_to_own'], 2)} "
                f"| {row['ms']['p50'] / 1000:.3f} |"
            )
        yield ""


def generate(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine."""
    rows = list(rows)
    if not any(row["kind"] == "cuda" for row in rows):
        yield "On a GPU, where steps are replayed as a CUDA graph: not yet measured.\n"

    def machine(row: Row) -> tuple[Any, ...]:
        return row["device"], row["threads"], row["torch"], row["commit"]

    for (device, threads, torch, commit), group in groupby(rows, machine):
        where = f"{threads} thread{'s' * (threads > 1)}, " if threads else ""
        yield f"**{device}**, {where}torch {torch}, commit {commit or 'unknown'}:\n"
        yield "| model | dtype | | new tokens | | s of its own | × transformers | by the clock | same tokens |"
        yield "|---|---|---|--:|---|--:|--:|--:|---|"
        for row in group:
            against = "– | – | –"
            if row["same"] is not None:
                against = f"{row['cpu_ratio']:.2f} | {row['ratio']:.2f} | {'yes' if row['same'] else 'no'}"
            yield (
                f"| {row['model']} | {row['dtype']} | {row['case']} | {row['new_tokens']} | {row['candidate']} "
                f"| {row['cpu_seconds']:.2f} | {against} |"
            )
        yield ""


def rates(rows: Iterable[Row]) -> Iterable[str]:
    """One table: a line a device."""
    rows = list(rows)
    if not rows:
        yield "Not yet measured, so no picture is drawn (`python -m benchmarks rates lora --device cpu`)."
        return
    for name in sorted(path.name for path in (ROOT / "benchmarks" / "results").glob("roofline-*.svg")):
        yield f"![{name.removesuffix('.svg')}](results/{name})\n"
    yield "| device | | ms, median (p20–p80) | |"
    yield "|---|---|--:|--:|"
    for row in rows:
        on = f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["threads"] else ""
        size, what = row.get("bytes", row.get("flops")), "copy" if "bytes" in row else f"product, {row['dtype']}"
        reached = roofline.rate(1000 * size / row["ms"]["p50"], "B/s" if "bytes" in row else "FLOP/s")
        yield f"| {row['device']}{on} | {what} | {spread(row['ms'], 2)} | {reached} |"


def evaluation(rows: Iterable[Row]) -> Iterable[str]:
    """Up to three tables a run: the whole split, shared beginnings against none, and a plain transformers loop."""
    rows = list(rows)
    if not rows:
        yield "Not yet measured."

    def run(row: Row) -> tuple[Any, ...]:
        return row["device"], row["threads"], row["torch"], row["commit"]

    for (device, threads, torch, commit), group in groupby(rows, run):
        where = f"{threads} thread{'s' * (threads > 1)}, " if threads else ""
        yield f"**{device}**, float32, {where}torch {torch}, commit {commit or 'unknown'}:\n"
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


def merge_in_short(rows: Iterable[Row]) -> Iterable[str]:
    """The full-size shapes, and what the largest of them says of larger models."""
    full = sorted((row for row in rows if row["shape"] != "small"), key=lambda row: (-row["rounds"], row["bytes"]))
    if not full:
        yield "Not yet measured at full size."
        return
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


def merge_of_larger(rows: Iterable[Row]) -> Iterable[str]:
    """Seconds of larger checkpoints, in proportion to bytes, from the largest measured."""
    measured = [row for row in rows if row["rounds"] > 1]
    if not measured:
        yield "Not yet measured."
        return
    largest = max(row["bytes"] for row in measured)
    measured = [row for row in measured if row["bytes"] == largest]
    yield f"| reckoned from {largest / 1e9:.1f} GB | " + " | ".join(LARGER) + " |"
    yield "|---|" + "--:|" * len(LARGER)
    for row in measured:
        if row["candidate"] in ("cp -r", "numllm exact", "numllm svd"):
            cells = [f"{row['ms']['p50'] / 1000 * size / largest:,.0f} s" for size in LARGER.values()]
            yield f"| {row['candidate']} | {' | '.join(cells)} |"


LARGER = {"7B, 15.2 GB": 15.2e9, "70B, 141 GB": 141e9}
"""Bytes of Qwen2.5-7B and Llama-3-70B in bf16."""

Table = Callable[[Iterable[Row]], Iterable[str]]
PAGES: dict[Path, dict[str, Table]] = {
    ROOT / "benchmarks" / "README.md": {
        "rates": rates, "lora_linear": lora_linear, "blocks": blocks, "loss": loss, "train_step": train_step,
        "train": train, "traffic": traffic, "merge": merge, "load": load, "numbers": numbers, "generate": generate,
        "evaluate": evaluation,
    },
    ROOT / "README.md": {"demo": demo, "ablation": ablation, "merge": merge_in_short},
    ROOT / "numllm" / "README.md": {"families": families},
    ROOT / "numllm" / "merge" / "README.md": {"merge": merge_of_larger},
    ROOT / "numllm" / "train" / "README.md": {"orthogonality": orthogonality},
}
"""Pages, and for each the name of a benchmark, in its rows and in the page's markers, with its tables."""


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


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is out of date")
    check = parser.parse_args().check
    results = ROOT / "benchmarks" / "results"
    rows = read_rows(results)
    wanted = roofline.pictures(rows, measure.slug)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in results.glob("roofline-*.svg")}
    if check and drawn != wanted:
        sys.exit("the pictures are not what the rows say; run python scripts/benchmark_tables.py")
    if not check:
        for name in drawn.keys() - wanted.keys():
            (results / name).unlink()
        for name, picture in wanted.items():
            (results / name).write_text(picture, encoding="utf-8")
    for path, tables in PAGES.items():
        page = path.read_text(encoding="utf-8")
        rendered = render(page, tables, rows)
        if check and rendered != page:
            sys.exit(f"{path.relative_to(ROOT)} is not what the rows say; run python scripts/benchmark_tables.py")
        if not check:
            path.write_text(rendered, encoding="utf-8")


if __name__ == "__main__":
    main()
