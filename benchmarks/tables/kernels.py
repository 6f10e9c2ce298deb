"""Tables of kernels, layers and training steps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import roofline
from .rows import Row, grouped, measured, spread, where

RESULTS = Path(__file__).resolve().parents[1] / "results"
_GPU = "On a GPU: not yet measured (`scripts/gpu_check.sh` measures it)."


def rates(rows: Iterable[Row]) -> Iterable[str]:
    """The pictures, and one table: a line a device."""
    rows = list(rows)
    if not rows:
        yield "Not yet measured, so no picture is drawn (`python -m benchmarks rates lora --device cpu`)."
        return
    for name in sorted(path.name for path in RESULTS.glob("roofline-*.svg")):
        yield f"![{name.removesuffix('.svg')}](results/{name})\n"
    yield "| device | | ms, median (p20–p80) | |"
    yield "|---|---|--:|--:|"
    for row in rows:
        on = f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["threads"] else ""
        size, what = row.get("bytes", row.get("flops")), "copy" if "bytes" in row else f"product, {row['dtype']}"
        reached = roofline.rate(1000 * size / row["ms"]["p50"], "B/s" if "bytes" in row else "FLOP/s")
        yield f"| {row['device']}{on} | {what} | {spread(row['ms'], 2)} | {reached} |"


def lora_linear(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine and precision."""
    rows = list(rows)
    yield from measured(rows, _GPU, on_gpu=True)
    yield from grouped(
        rows, lambda row: where(row, row["dtype"], peers=("peft",)),
        ("linear", "tokens:", "adapters:", "", "ms, median (p20–p80):", "× frozen:", "frozen TFLOP/s:"),
        lambda row: (
            f"{row['in']} → {row['out']}", row["tokens"], row["adapters"], row["candidate"], spread(row["ms"], 2),
            f"{row['ratio_to_frozen']['p50']:.2f}", f"{row['frozen_tflops']:.3g}",
        ),
    )


def lora_producer(rows: Iterable[Row]) -> Iterable[str]:
    """One table a GPU."""
    rows = list(rows)
    yield from measured(rows, _GPU)
    yield from grouped(
        rows, lambda row: where(row, row["dtype"], f"{row['tokens']} tokens, rank {row['rank']}"),
        ("", "", "", "ms, median (p20–p80):", "× frozen:"),
        lambda row: (
            row["case"], row["pass"], row["candidate"], spread(row["ms"], 3), f"{row['ratio_to_frozen']['p50']:.3f}",
        ),
    )


def blocks(rows: Iterable[Row]) -> Iterable[str]:
    """One table a GPU: what share of a copy's bandwidth each candidate reaches."""
    rows = [row for row in rows if row["kind"] == "cuda"]
    yield from measured(rows, "On a GPU: not yet measured.")
    yield from grouped(
        rows, lambda row: where(row, row["dtype"]),
        ("forward + backward", "MB:", "", "ms, median (p20–p80):", "GB/s:", "% of a copy:"),
        lambda row: (
            row["case"], f"{row['bytes'] / 1e6:.0f}", row["candidate"], spread(row["ms"], 3), f"{row['gb_per_s']:.0f}",
            f"{100 * row['share_of_copy']['p50']:.0f}",
        ),
    )


def loss(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine and shape."""
    rows = list(rows)
    yield from measured(rows, "On a GPU: not yet measured.", on_gpu=True)
    yield from grouped(
        rows,
        lambda row: where(
            row, row["dtype"], f"{row['tokens']} tokens × {row['vocabulary']} words × {row['width']}"
        ),
        ("", "ms, median (p20–p80):", "× two products:", "extra memory, MB:", "TFLOP/s:"),
        lambda row: (
            row["candidate"], spread(row["ms"], 1), f"{row['ratio']['p50']:.2f}", f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['tflops']:.3g}",
        ),
    )


def train_step(rows: Iterable[Row]) -> Iterable[str]:
    """One table a machine."""

    def cells(row: Row) -> Iterable[Any]:
        ms, flops = row["ms"], "–"
        if "flops" in row:
            flops = f"{row['flops'] / ms['p50'] / 1e9:.3g}" + (f" ({row['mfu']:.0%})" if row["mfu"] else "")
        speed = spread(row["speed"], 2) if row["speed"] else "–"
        return (
            row["case"], row["tokens"], row["candidate"], spread(ms, 0), f"{1000 * row['tokens'] / ms['p50']:,.0f}",
            flops, speed, row["peak_bytes"] >> 20,
        )

    rows = list(rows)
    yield from measured(rows, _GPU, on_gpu=True)
    yield from grouped(
        rows,
        lambda row: where(
            row, f"{row['layers']} layers in {row.get('dtype', 'float32')}", peers=("transformers", "peft")
        ),
        ("step", "tokens:", "", "ms, median (p20–p80):", "tokens/s:", "4 P, TFLOP/s:",
         "× the peer's speed (p20–p80):", "peak memory, MiB:"),
        cells,
    )
