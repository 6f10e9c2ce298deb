"""What the device itself can do: the rate at which memory is copied, and that of a big product in each precision.

    python -m benchmarks.bench_rates --device cuda --out rows.jsonl

The roofs that the kernels' figures are drawn under (`benchmarks.roofline`). A copy reads and writes each byte once; a
product of three square matrices of n² elements takes 2 n³ operations, by the library that torch calls, fp32 not in
TF32.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure

COPY = {"cuda": 2**30, "cpu": 2**28}
"""Bytes of what is copied."""
SIDE = {"cuda": 8192, "cpu": 1536}
DTYPES = {"cuda": (torch.bfloat16, torch.float16, torch.float32), "cpu": (torch.float32,)}


def bench(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """A row for the copy and for each precision's product."""
    source = torch.ones(COPY[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls = {"copy": lambda _: target.copy_(source)}
    side = SIDE[device.type]
    for dtype in DTYPES[device.type]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        calls[str(dtype).removeprefix("torch.")] = lambda _, a=a, b=b, out=out: torch.mm(a, b, out=out)
    rows = []
    for name, timing in measure.compare(calls, [None], device, rounds=rounds).items():
        ms = timing.quantiles()
        row: dict[str, Any] = {"bench": "rates", "candidate": "copy" if name == "copy" else "product", "ms": ms}
        if name == "copy":
            row |= {"bytes": 2 * source.nbytes, "tb_per_s": round(2 * source.nbytes / ms["p50"] / 1e9, 4)}
        else:
            flops = 2 * side**3
            row |= {"dtype": name, "side": side, "flops": flops, "tflops": round(flops / ms["p50"] / 1e9, 4)}
        rows.append(row | {"rounds": rounds})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    device = measure.device_of(given.device)
    where = measure.provenance(device)
    rows = [row | where for row in bench(device, 10 if given.quick else 30)]
    for row in rows:
        rate = f"{row['tb_per_s']:.3f} TB/s" if "tb_per_s" in row else f"{row['dtype']} {row['tflops']:.3f} TFLOP/s"
        print(f"{row['candidate']}: {rate}", flush=True)
    measure.write_rows(given.out, rows)


if __name__ == "__main__":
    main()
