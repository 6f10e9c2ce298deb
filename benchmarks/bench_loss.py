"""Cross-entropy over a frozen head of a large vocabulary: loss and the gradient of the states, time and memory.

    python -m benchmarks.bench_loss --device cuda --out benchmarks/results/loss-gpu.jsonl

The floor is *two products*: x wᵀ of all rows at once and, from a matrix of the same size, dx, with no loss between. All
candidates take turns in one run; memory is the most that one call holds beyond its inputs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.bench_step import _status
from numllm import ops

GPU_SHAPE = (8192, 152064, 3584)
"""Tokens, vocabulary and width: two rows of 4096 tokens of Qwen2.5-7B."""
CPU_SHAPE = (512, 32768, 512)


class Batch(NamedTuple):
    """x (S, D), which requires its gradient, w (V, D), labels (S,)."""

    x: Tensor
    w: Tensor
    labels: Tensor


def make(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Batch:
    """Random states and head, logits of size 1."""
    torch.manual_seed(0)
    tokens, vocabulary, width = shape
    x = torch.randn(tokens, width, dtype=dtype, device=device).requires_grad_()
    w = torch.randn(vocabulary, width, dtype=dtype, device=device) / width**0.5
    return Batch(x, w, torch.randint(vocabulary, (tokens,), device=device))


def two_products(batch: Batch) -> Tensor:
    """The products alone."""
    with torch.no_grad():
        logits = batch.x @ batch.w.T
        return logits @ batch.w


def by(losses: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Batch], Tensor]:
    """The gradient of the summed loss."""
    return lambda batch: torch.autograd.grad(losses(*batch), batch.x)[0]


def plain(x: Tensor, w: Tensor, labels: Tensor) -> Tensor:
    """What users write: logits of all rows, widened."""
    return F.cross_entropy((x @ w.T).float(), labels, reduction="sum")


def candidates(device: torch.device) -> dict[str, Callable[[Batch], Tensor]]:
    """name → call, of everyone who runs here."""
    found = {"two products": two_products, "numllm": by(lambda *given: ops.token_losses(*given).sum())}
    if device.type == "cuda":
        found["numllm, torch"] = by(lambda *given: ops.token_losses(*given, impl="torch").sum())
    found["cross_entropy"] = by(plain)
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=False)
        found["torch linear_cross_entropy"] = by(
            lambda *given: F.linear_cross_entropy(*given, reduction="sum", options=options)
        )
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        found["Liger"] = by(lambda *given: liger_fused_linear_cross_entropy(*given, reduction="sum"))
    if device.type == "cuda" and importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found["CCE"] = by(lambda *given: linear_cross_entropy(*given, reduction="sum"))
    return found


def peak(name: str, batch: Batch, shape: tuple[int, int, int]) -> int:
    """Most bytes that a call holds beyond its inputs; on a CPU in a process of its own."""
    device = batch.x.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        candidates(device)[name](batch)
        return torch.cuda.max_memory_allocated(device) - before
    given = json.dumps([name, shape, str(batch.x.dtype).removeprefix("torch.")])
    command = [sys.executable, "-m", "benchmarks.bench_loss", "--device", "cpu", "--peak", given]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def own_peak(name: str, shape: Sequence[int], dtype: str) -> int:
    """The same in this process, by the resident set."""
    device = torch.device("cpu")
    call = candidates(device)[name]
    call(make((64, 512, 64), getattr(torch, dtype), device))  # the libraries' own memory
    batch = make(tuple(shape), getattr(torch, dtype), device)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    call(batch)
    return _status("VmHWM") - before


def bench(
    shape: tuple[int, int, int], *, dtype: torch.dtype, device: torch.device, rounds: int
) -> Iterator[dict[str, Any]]:
    """One row a candidate. RuntimeError when numllm's gradient is not that of cross-entropy."""
    batch = make(shape, dtype, device)
    calls = candidates(device)
    few = Batch(batch.x.detach()[:64].requires_grad_(), batch.w, batch.labels[:64])
    expected = calls["cross_entropy"](few).float()
    for name, call in list(calls.items()):
        try:
            off = (call(few).float() - expected).norm() / expected.norm()
            if name != "two products" and not off < max(1e-4, 8 * torch.finfo(dtype).eps):
                raise RuntimeError(f"the gradient by {name} differs from torch's by {off:.2g}; it is not timed")
        except Exception as error:
            if name.startswith("numllm"):
                raise
            del calls[name]
            yield {"bench": "loss", "candidate": name, "skipped": measure.reason(error)}
    timings = measure.compare(calls, [batch], device, rounds=rounds, warmup=1)  # w alone is larger than the cache
    tokens, vocabulary, width = shape
    for name, timing in timings.items():
        ms = timing.quantiles()
        yield {
            "bench": "loss", "candidate": name, "tokens": tokens, "vocabulary": vocabulary, "width": width,
            "dtype": str(dtype).removeprefix("torch."), "ms": ms, "ratio": timing.ratio(timings["two products"]),
            "peak_bytes": peak(name, batch, shape),
            "tflops": round(4 * tokens * vocabulary * width / ms["p50"] / 1e9, 4), "rounds": rounds,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_loss", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="bfloat16 on cuda, float32 on cpu by default"
    )
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--out", type=Path, help="file of JSON lines to write; stdout otherwise")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak:
        print(json.dumps(own_peak(*json.loads(options.peak))))
        return
    device = measure.device_of(options.device)
    shape, dtype, rounds = (
        (GPU_SHAPE, torch.bfloat16, 20) if options.device == "cuda" else (CPU_SHAPE, torch.float32, 9)
    )
    if options.dtype:
        dtype = getattr(torch, options.dtype)
    if options.quick:
        shape, rounds = (shape[0] // 2, *shape[1:]), max(3, rounds // 3)
    where = measure.provenance(device)
    for row in bench(shape, dtype=dtype, device=device, rounds=rounds):
        measure.give_rows(options.out, [{**row, **where}])
        if "skipped" in row:
            print(f"{row['candidate']} is left out: {row['skipped']}", file=sys.stderr)
            continue
        print(
            f"{row['candidate']}: {row['ms']['p50']:.2f} ms, {row['ratio']['p50']:.3f} × two products, "
            f"{row['peak_bytes'] / 2**20:.0f} MiB", file=sys.stderr,
        )


if __name__ == "__main__":
    main()
