"""Tile sizes of the LoRA kernels by a GPU's clock, as entries for `numllm_kernels.tiles`.

    python -m benchmarks.bench_tiles --out rows.jsonl

Each kernel makes the calls that it has in a training step of one block of Qwen2.5-7B: 8192 tokens in bf16, an adapter
of rank 16. A tile's time is that of all these calls. All tiles are compiled first, by all processors of the host; then
the tiles of a kernel take turns, the table's own among them, and so does what the kernel takes the place of: torch's
products, or norm and SwiGLU with `down` behind them. A tile whose results differ from the table's, that spills
registers or does not fit is left out.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.bench_producer import EPS, SHAPE
from numllm import products
from numllm.ops import implementations

RANK = 16
GAIN = 0.02
"""Part of the time that a tile must save to take the place of the table's."""


class Tile(NamedTuple):
    """Warps, stages and the sides of the blocks, `sides` their names."""

    warps: int
    stages: int
    sides: str
    sizes: tuple[int, ...]

    def settings(self) -> dict[str, int]:
        """As the table has it."""
        blocks = {f"BLOCK_{side}": size for side, size in zip(self.sides, self.sizes, strict=True)}
        return {**blocks, "num_warps": self.warps, "num_stages": self.stages}

    def __str__(self) -> str:
        blocks = ", ".join(f"{side}={size}" for side, size in zip(self.sides, self.sizes, strict=True))
        return f"_tile({self.warps}, {self.stages}, {blocks})"


def _tiles(sides: str, *given: tuple[int, ...]) -> tuple[Tile, ...]:
    return tuple(Tile(warps, stages, sides, tuple(sizes)) for warps, stages, *sizes in given)


CANDIDATES = {
    "down": _tiles(
        "MK", (4, 3, 64, 128), (4, 4, 64, 128), (4, 3, 64, 256), (4, 6, 64, 64), (4, 4, 128, 64), (8, 4, 128, 64),
        (8, 3, 128, 128),
    ),
    "down_outer": _tiles(
        "MN", (8, 2, 256, 64), (8, 4, 256, 64), (8, 2, 256, 128), (8, 3, 128, 64), (4, 3, 128, 64), (4, 4, 128, 64),
        (8, 3, 128, 128),
    ),
    "outer": _tiles(
        "KM", (4, 3, 128, 64), (4, 5, 128, 64), (4, 3, 128, 128), (4, 4, 64, 128), (4, 6, 64, 64), (8, 3, 256, 64),
        (8, 4, 256, 64),
    ),
    "swiglu_down": _tiles(
        "MK", (4, 2, 64, 64), (8, 3, 64, 64), (8, 2, 64, 128), (8, 3, 64, 128), (4, 3, 32, 64), (8, 2, 128, 64),
    ),
    "linear": _tiles(
        "MNK", (8, 4, 128, 256, 64), (8, 3, 256, 128, 64), (8, 4, 256, 128, 64), (4, 4, 128, 128, 64),
        (8, 4, 128, 128, 64), (8, 3, 128, 128, 128),
    ),
    "norm_down": _tiles(
        "MK", (8, 3, 32, 128), (4, 3, 32, 128), (8, 5, 32, 128), (8, 3, 32, 256), (8, 3, 16, 256),
    ),
}
"""Kernel → tiles for many rows beside the table's. In the order of what a step can gain."""
INSTEAD = {"linear": "FUSED", "swiglu_down": "PRODUCED", "norm_down": "PRODUCED"}
"""Kernel → the table of `tiles` that says whether it is used at all."""


class Call(NamedTuple):
    """A launcher's call."""

    label: str
    times: int
    """In a block."""
    run: Callable[[], Tensor | Sequence[Tensor]]
    instead: Callable[[], Any] | None = None
    """What gives the same without the kernel."""


def calls(kernel: str, shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """The calls of a kernel in a step of one block."""
    tokens, width, kv, inner = (shape[name] for name in ("tokens", "width", "kv", "inner"))
    lora, producer, norm, swiglu = map(implementations.load_kernels, ("lora", "producer", "norm", "swiglu"))
    matrix = functools.partial(torch.randn, dtype=dtype, device=device)
    scales = torch.full((3 * RANK,), 2.0, device=device)
    if kernel in ("down", "outer"):
        for k, rank in ((width, 3 * RANK), (width, RANK), (width, 2 * RANK), (inner, RANK)):
            x, a, s, own = matrix(tokens, k), matrix(rank, k) / k**0.5, matrix(tokens, rank), scales[:rank]
            down, outer = functools.partial(lora.down, x, a, own), functools.partial(lora.outer, s, x)
            yield Call(f"{k}, R = {rank}", 1, down if kernel == "down" else outer)
    elif kernel == "down_outer":
        for n, times in ((width, 3), (kv, 2), (inner, 2)):
            dy, b, s = matrix(tokens, n), matrix(n, RANK) / n**0.5, matrix(tokens, RANK)
            yield Call(str(n), times, functools.partial(lora.down_outer, dy, b, s, scales[:RANK]))
    elif kernel == "linear":
        for k, n, times in ((width, width, 2), (width, inner, 2), (inner, width, 1)):
            w, a, b = matrix(n, k) / k**0.5, matrix(RANK, k), matrix(n, RANK)
            for label, big, low in ((f"{k} → {n}", w, b), (f"{k} ← {n}", w.T, a.T)):
                x, s = matrix(tokens, big.shape[1]), matrix(tokens, RANK)
                yield Call(
                    label, times, functools.partial(lora.linear, x, big, None, s, low),
                    lambda x=x, s=s, big=big, low=low: products.add_products(products.low_rank(s, low.T), (x, big.T)),
                )
    elif kernel == "swiglu_down":
        gate, up, a = matrix(tokens, inner), matrix(tokens, inner), matrix(RANK, inner) / inner**0.5
        yield Call(
            str(inner), 1, functools.partial(producer.swiglu_down, gate, up, a, scales[:RANK]),
            lambda: lora.down(swiglu.swiglu(gate, up), a, scales[:RANK]),
        )
    else:
        x, more, weight = matrix(tokens, width), matrix(tokens, width), matrix(width)
        for rank, added in ((3 * RANK, None), (2 * RANK, more)):
            a = matrix(rank, width) / width**0.5
            yield Call(
                f"{'sum, ' * (added is not None)}{width}, R = {rank}", 1,
                functools.partial(producer.norm_down, x, weight, EPS, a, scales[:rank], added=added),
                lambda a=a, added=added: lora.down(norm.norm(x, weight, EPS, added)[1], a, scales[: len(a)]),
            )


def results(call: Call) -> list[Tensor]:
    """What the launcher gives."""
    found = call.run()
    return [found] if isinstance(found, Tensor) else list(found)


@contextlib.contextmanager
def using(kernel: str, tile: Tile | None, device: torch.device) -> Iterator[None]:
    """The table has this tile for many rows; None: it is as it is."""
    table = implementations.load_kernels("tiles")
    where, before = table.capability(device), dict(table.TILES)
    if tile is not None:
        own = table.of(device)
        table.TILES[where] = {**own, kernel: {**own[kernel], "many": tile.settings()}}
    try:
        yield
    finally:
        table.TILES.clear()
        table.TILES.update(before)


class _Target:
    """What Triton's compiler asks of a driver, where no GPU is opened."""

    def __init__(self, capability: tuple[int, int]) -> None:
        from triton.backends.compiler import GPUTarget

        self.get_current_target = lambda: GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0


def compiled(kernel: str, tile: Tile, capability: tuple[int, int]) -> str:
    """Puts a kernel with this tile into Triton's cache; what is wrong with it, or nothing."""
    import triton

    triton.runtime.driver.set_active(_Target(capability))
    tiles, common = (implementations.load_kernels(name) for name in ("tiles", "common"))
    tiles.capability = lambda device: capability
    common.launch = lambda jit, grid, *given, **settings: jit.warmup(*given, grid=grid, **settings)
    meta = torch.device("meta")
    try:
        with using(kernel, tile, meta):
            for call in calls(kernel, SHAPE, torch.bfloat16, meta):
                call.run()
    except Exception as error:
        return measure.reason(error)
    return ""


def fitting(
    kernel: str, call: Call, tile: Tile, expected: Sequence[Tensor], dtype: torch.dtype, device: torch.device
) -> str:
    """Why a tile is left out, or nothing: it runs, spills no registers and gives what the table's gives."""
    common, handles = implementations.load_kernels("common"), []
    launch = common.launch
    common.launch = lambda *given, **settings: handles.append(launch(*given, **settings))
    try:
        with using(kernel, tile, device):
            found = results(call)
    except Exception as error:
        return measure.reason(error)
    finally:
        common.launch = launch
    spilled = max((getattr(handle, "n_spills", 0) for handle in handles), default=0)
    if spilled:
        return f"spills {spilled} registers"
    for one, other in zip(found, expected, strict=True):
        off = (one.float() - other.float()).norm() / other.float().norm()
        if not off <= torch.finfo(dtype).eps:
            return f"differs from the table's by {off:.2g}"
    return ""


def timed(
    kernel: str, tiles: Sequence[Tile], shape: Mapping[str, int], *, dtype: torch.dtype, device: torch.device,
    rounds: int,
) -> tuple[dict[Tile | None | str, dict[str, measure.Timing]], dict[Tile, str]]:
    """(the times of each tile's calls by their labels; why tiles are left out). None: the table's tile; "instead": of
    what the kernel takes the place of.
    """
    left: dict[Tile, str] = {}
    found: dict[Tile | None | str, dict[str, measure.Timing]] = {}
    torch.manual_seed(0)
    for call in calls(kernel, shape, dtype, device):
        expected = results(call)
        for tile in tiles:
            if tile not in left and (why := fitting(kernel, call, tile, expected, dtype, device)):
                left[tile] = why

        def run(tile: Tile | None, _: None, call: Call = call) -> None:
            with using(kernel, tile, device):
                call.run()

        candidates: dict[Any, Callable[[Any], Any]] = {
            tile: functools.partial(run, tile) for tile in (None, *(tile for tile in tiles if tile not in left))
        }
        if call.instead:
            candidates["instead"] = lambda _, call=call: call.instead()
        for name, timing in measure.compare(candidates, [None], device, rounds=rounds).items():
            found.setdefault(name, {})[call.label] = timing
    return {name: times for name, times in found.items() if name not in left}, left


def bench(
    kernel: str, tiles: Sequence[Tile], shape: Mapping[str, int], *, dtype: torch.dtype, device: torch.device,
    rounds: int,
) -> Iterator[dict[str, Any]]:
    """A row a tile, the table's first, and one of what the kernel takes the place of; "us": of a block's calls."""
    times, left = timed(kernel, tiles, shape, dtype=dtype, device=device, rounds=rounds)
    often = {call.label: call.times for call in calls(kernel, shape, dtype, torch.device("meta"))}
    for tile, why in left.items():
        yield {"bench": "tiles", "kernel": kernel, "candidate": str(tile), "skipped": why}
    for name, own in times.items():
        medians = {label: 1000 * timing.quantiles()["p50"] for label, timing in own.items()}
        yield {
            "bench": "tiles", "kernel": kernel, "candidate": "table" if name is None else str(name),
            "us": round(sum(often[label] * value for label, value in medians.items()), 1),
            "calls": {label: round(value, 1) for label, value in medians.items()},
            "tokens": shape["tokens"], "rank": RANK, "dtype": str(dtype).removeprefix("torch."), "rounds": rounds,
        }


def advice(kernel: str, rows: Sequence[Mapping[str, Any]], capability: tuple[int, int]) -> Iterator[str]:
    """What the table should say after these rows of `bench`."""
    us = {row["candidate"]: row["us"] for row in rows if "us" in row}
    instead, table = us.pop("instead", None), us.pop("table")
    best = min(us, key=us.__getitem__, default=None)
    if best is None or us[best] > (1 - GAIN) * table:
        yield f"{kernel}: the table's tile stays, {table} µs" + (f"; {best}: {us[best]} µs" if best else "")
        least = table
    else:
        yield f'{kernel}: {table} → {us[best]} µs:  "{kernel}": {{**_DEFAULT["{kernel}"], "many": {best}}},'
        least = us[best]
    if instead is not None:
        yield f"{kernel}: {instead} without it, {least} µs by it: {INSTEAD[kernel]}[{capability}] = {least < instead}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_tiles", description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", action="append", choices=tuple(CANDIDATES), help="all of them by default")
    parser.add_argument("--seconds", type=float, default=200, help="no further kernel is begun after this time")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--out", type=Path, help="file of JSON lines to write; stdout otherwise")
    options = parser.parse_args(arguments)
    began, device, dtype = time.monotonic(), measure.device_of("cuda"), torch.bfloat16
    capability = torch.cuda.get_device_capability(device)
    where = measure.provenance(device)
    names = options.kernel or list(CANDIDATES)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max(1, (os.cpu_count() or 1) - 1), context) as pool:
        jobs = {
            (name, tile): pool.submit(compiled, name, tile, capability) for name in names for tile in CANDIDATES[name]
        }
        wrong = {job: why for job, future in jobs.items() if (why := future.result())}
    print(f"{len(jobs) - len(wrong)} tiles compiled, {time.monotonic() - began:.0f} s", flush=True)
    for (name, tile), why in wrong.items():
        print(f"{name}, {tile} is left out: {why}", file=sys.stderr)
    for name in names:
        if time.monotonic() - began > options.seconds:
            print(f"{name}: no time left; its tile stays", flush=True)
            continue
        tiles = [tile for tile in CANDIDATES[name] if (name, tile) not in wrong]
        rows = list(bench(name, tiles, SHAPE, dtype=dtype, device=device, rounds=10 if options.quick else 30))
        measure.give_rows(options.out, [{**row, **where} for row in rows])
        for row in rows:
            print(f"{name}, {row['candidate']}: {row.get('skipped', row.get('us'))}", file=sys.stderr)
        for line in advice(name, rows, capability):
            print(line, flush=True)


if __name__ == "__main__":
    main()
