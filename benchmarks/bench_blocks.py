"""RMSNorm, SwiGLU and rotary positions, forward and backward, against a copy of as many bytes.

    python -m benchmarks.bench_blocks --device cuda --out benchmarks/results/blocks-gpu.jsonl

They do next to no arithmetic, so what there is to reach is the bandwidth of a copy. Every candidate of a case gives the
same results and gradients; *bytes* are those of one read and one write of what must be read and written, whoever moves
more. All candidates of a case and the copy take turns in one run.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import measure
from numllm.ops import elementwise
from numllm.rope import rotations

EPS = 1e-6
GPU_SHAPE = {"tokens": 8192, "width": 3584, "inner": 18944, "heads": 28, "kv_heads": 4, "size": 128}
"""Two rows of 4096 tokens of Qwen2.5-7B."""
CPU_SHAPE = {"tokens": 512, "width": 896, "inner": 4864, "heads": 14, "kv_heads": 2, "size": 64}

Call = Callable[..., Tensor | Sequence[Tensor]]


class Case(NamedTuple):
    """A function by each of those who have it."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    """Of its inputs that are tokens; a gradient is formed for each."""
    moved: int
    """Elements read and written, forward and backward."""
    call: Callable[[str], Call]
    """impl → numllm's function."""
    liger: Callable[[Any], Call]
    """liger_kernel.transformers.functional → its function."""


def cases(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """What stands between the products of a block of this shape."""
    tokens, size = shape["tokens"], shape["size"]
    rows, wide = (tokens, shape["width"]), (tokens, shape["inner"])
    q, k = ((tokens, shape[name] * size) for name in ("heads", "kv_heads"))
    weight = torch.rand(shape["width"], dtype=dtype, device=device)
    pairs = 10_000.0 ** -(torch.arange(0, size, 2, device=device) / size)
    turned = rotations(torch.arange(tokens, device=device)[None, None, :, None] * pairs, neighbours=False)
    cos, sin = turned.cos().to(dtype), turned.sin().to(dtype)

    def heads(x: Tensor) -> Tensor:
        """As a linear leaves them: (tokens, H E) → (1, H, tokens, E)."""
        return x.view(1, tokens, -1, size).transpose(1, 2)

    yield Case(
        "RMSNorm", (rows,), (2 + 3) * tokens * shape["width"],
        lambda impl: lambda x: elementwise.rms_norm(x, weight, EPS, impl),
        lambda liger: lambda x: liger.liger_rms_norm(x, weight, EPS, in_place=False),
    )
    yield Case(
        "sum and RMSNorm", (rows, rows), (4 + 4) * tokens * shape["width"],
        lambda impl: lambda x, y: elementwise.add_rms_norm(x, y, weight, EPS, impl=impl),
        lambda liger: lambda x, y: liger.liger_fused_add_rms_norm(x, y, weight, EPS, in_place=False)[::-1],
    )
    yield Case(
        "SwiGLU", (wide, wide), (3 + 5) * tokens * shape["inner"],
        lambda impl: lambda gate, up: elementwise.swiglu(gate, up, impl), lambda liger: liger.liger_swiglu,
    )
    yield Case(
        "rotation of q and k", (q, k), (2 + 2) * tokens * (q[1] + k[1]),
        lambda impl: lambda q, k: elementwise.rotate(heads(q), heads(k), cos, sin, impl=impl),
        lambda liger: lambda q, k: liger.liger_rope(heads(q), heads(k), cos[:, 0], sin[:, 0].roll(size // 2, -1)),
    )


class Batch(NamedTuple):
    """Inputs that require gradients, gradients of the results, and what a copy copies."""

    inputs: list[Tensor]
    upstream: list[Tensor]
    source: Tensor
    target: Tensor


def results(call: Call, inputs: Sequence[Tensor]) -> list[Tensor]:
    found = call(*inputs)
    return [found] if isinstance(found, Tensor) else list(found)


def both_ways(call: Call) -> Callable[[Batch], tuple[Tensor, ...]]:
    """Forward and backward: (*results, *gradients)."""

    def run(batch: Batch) -> tuple[Tensor, ...]:
        found = results(call, batch.inputs)
        return *found, *torch.autograd.grad(found, batch.inputs, batch.upstream)

    return run


def candidates(case: Case, device: torch.device) -> Iterator[tuple[str, Callable[[Batch], Any]]]:
    """(name, call) of everyone who runs here."""
    yield "copy", lambda batch: batch.target.copy_(batch.source)
    yield "numllm", both_ways(case.call("auto"))
    if device.type == "cuda":
        yield "torch", both_ways(case.call("torch"))
        yield "torch, compiled", both_ways(torch.compile(case.call("torch")))
        if importlib.util.find_spec("liger_kernel"):
            functional = importlib.import_module("liger_kernel.transformers.functional")
            yield "Liger", both_ways(case.liger(functional))


def bench(case: Case, *, dtype: torch.dtype, device: torch.device, rounds: int) -> Iterator[dict[str, Any]]:
    """One row a candidate. RuntimeError when numllm does not compute what torch computes."""
    torch.manual_seed(0)

    def make(_: int) -> Batch:
        inputs = [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in case.shapes]
        upstream = [torch.randn_like(part) for part in results(case.call("torch"), inputs)]
        source = torch.randn(case.moved // 2, dtype=dtype, device=device)
        return Batch(inputs, upstream, source, torch.empty_like(source))

    moved = case.moved * dtype.itemsize
    batches = measure.rotating(make, moved, device)
    calls = dict(candidates(case, device))
    expected = both_ways(case.call("torch"))(batches[0])
    for name, call in list(calls.items()):
        try:
            for found, wanted in zip(() if name == "copy" else call(batches[0]), expected, strict=name != "copy"):
                off = (found.float() - wanted.float()).norm() / wanted.float().norm()
                if not off < max(1e-4, 8 * torch.finfo(dtype).eps):
                    raise RuntimeError(f"{case.name} by {name} differs from torch's by {off:.2g}; it is not timed")
        except Exception as error:
            if name == "numllm":
                raise
            del calls[name]
            yield {"bench": "blocks", "case": case.name, "candidate": name, "skipped": measure.reason(error)}
    timings = measure.compare(calls, batches, device, rounds=rounds)
    for name, timing in timings.items():
        ms = timing.quantiles()
        yield {
            "bench": "blocks", "case": case.name, "candidate": name, "shapes": case.shapes, "bytes": moved,
            "dtype": str(dtype).removeprefix("torch."), "pass": "forward + backward", "ms": ms,
            "share_of_copy": timings["copy"].ratio(timing), "gb_per_s": round(moved / ms["p50"] / 1e6, 1),
            "rounds": rounds,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_blocks", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="bfloat16 on cuda, float32 on cpu by default"
    )
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--out", type=Path, help="file of JSON lines to write; stdout otherwise")
    options = parser.parse_args(arguments)
    device = measure.device_of(options.device)
    shape, dtype, rounds = (
        (GPU_SHAPE, torch.bfloat16, 100) if options.device == "cuda" else (CPU_SHAPE, torch.float32, 30)
    )
    if options.dtype:
        dtype = getattr(torch, options.dtype)
    if options.quick:
        shape, rounds = {**shape, "tokens": shape["tokens"] // 2}, max(10, rounds // 3)
    where = measure.provenance(device)
    if options.device == "cuda" and not importlib.util.find_spec("liger_kernel"):
        skipped = {"bench": "blocks", "candidate": "Liger", "skipped": "liger_kernel is not installed", **where}
        measure.give_rows(options.out, [skipped])
        print("bench_blocks: liger_kernel is not installed, its rows are left out", file=sys.stderr)
    for case in cases(shape, dtype, device):
        for row in bench(case, dtype=dtype, device=device, rounds=rounds):
            measure.give_rows(options.out, [{**row, **where}])
            if "skipped" in row:
                print(f"{case.name}, {row['candidate']} is left out: {row['skipped']}", file=sys.stderr)
                continue
            print(
                f"{case.name}, {row['candidate']}: {row['ms']['p50']:.3f} ms, {row['gb_per_s']:.0f} GB/s, "
                f"{100 * row['share_of_copy']['p50']:.0f} % of a copy", file=sys.stderr,
            )


if __name__ == "__main__":
    main()
