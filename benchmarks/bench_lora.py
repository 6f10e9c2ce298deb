"""One LoRA linear, forward and backward, against the frozen linear alone and against PEFT.

    python -m benchmarks.bench_lora --device cuda --out rows.jsonl

Timed: y, dX, dA and dB of rank-16 adapters in fp32 on a frozen linear; for the frozen linear, y and dX. All
candidates of a shape take turns in one run, so their ratios are of one moment.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure
from numllm import ops

RANK, ALPHA = 16, 32
GPU_SHAPES = [(4096, 4096), (3584, 18944), (18944, 3584)]
CPU_SHAPES = [(1024, 1024), (896, 4864), (4864, 896)]


class Batch(NamedTuple):
    """x (M, K), requiring its gradient, and the gradient dy (M, N) of y."""

    x: Tensor
    dy: Tensor


class Layer:
    """A frozen linear K → N and its adapters' factors, stacked."""

    def __init__(self, k: int, n: int, adapters: int, tokens: int, dtype: torch.dtype, device: torch.device):
        self.adapters = adapters
        ranks = adapters * RANK
        self.w = torch.randn(n, k, dtype=dtype, device=device) / k**0.5
        self.a = (torch.randn(ranks, k, device=device) / k**0.5).requires_grad_()
        self.b = (torch.randn(n, ranks, device=device) / ranks**0.5).requires_grad_()
        self.scales = torch.full((ranks,), ALPHA / RANK, device=device)
        self.columns = torch.arange(adapters, dtype=torch.int32, device=device).repeat_interleave(RANK)
        self.rows = torch.arange(tokens, dtype=torch.int32, device=device) % adapters

    def frozen(self, batch: Batch) -> None:
        """y and dX of the linear without adapters."""
        torch.autograd.grad(F.linear(batch.x, self.w), batch.x, batch.dy)

    def numllm(self, batch: Batch, *, impl: str, by_row: bool) -> None:
        """y, dX, dA, dB. by_row: each token through one adapter; else each through all."""
        y = ops.lora_linear(
            batch.x, self.w, None, self.a, self.b, self.scales, self.columns, self.rows if by_row else None,
            impl=impl,
        )
        torch.autograd.grad(y, (batch.x, self.a, self.b), batch.dy)

    def peft(self, *, fp32_factors: bool) -> Callable[[Batch], None]:
        """The same by PEFT, every token through all adapters: its training has no adapter by row."""
        import peft

        class Holder(nn.Module):
            def __init__(self, linear: nn.Linear) -> None:
                super().__init__()
                self.proj = linear

        linear = nn.Linear(*self.w.shape[::-1], bias=False, dtype=self.w.dtype, device=self.w.device)
        linear.weight.data.copy_(self.w)
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["proj"])
        model = peft.get_peft_model(Holder(linear), config, autocast_adapter_dtype=fp32_factors)
        if self.adapters > 1:
            for index in range(1, self.adapters):
                model.add_adapter(f"adapter{index}", config, autocast_adapter_dtype=fp32_factors)
            model.base_model.set_adapter(["default", *(f"adapter{i}" for i in range(1, self.adapters))])
        layer = model.base_model.model.proj
        factors = [p for name, p in layer.named_parameters() if "lora_" in name]
        for factor in factors:
            nn.init.normal_(factor, std=0.02)  # B starts at zero otherwise
        if any(not factor.requires_grad for factor in factors) or len(factors) != 2 * self.adapters:
            raise RuntimeError(f"PEFT would not train all of its {self.adapters} adapters; the figures would lie")

        def call(batch: Batch) -> None:
            torch.autograd.grad(layer(batch.x), (batch.x, *factors), batch.dy)

        return call

    def candidates(self) -> Iterator[tuple[str, Callable[[Batch], None]]]:
        """(name, call) of everything that runs here."""
        yield "frozen linear", self.frozen
        impls = {"numllm": "auto"}
        if self.w.is_cuda:
            impls |= {"numllm, fused": "triton-fused", "numllm, torch": "torch"}
        for name, impl in impls.items():
            yield name, lambda batch, impl=impl: self.numllm(batch, impl=impl, by_row=False)
            if self.adapters > 1:
                yield f"{name}, by row", lambda batch, impl=impl: self.numllm(batch, impl=impl, by_row=True)
        if importlib.util.find_spec("peft"):
            yield "PEFT", self.peft(fp32_factors=True)
            if self.w.dtype != torch.float32:
                yield "PEFT, 16-bit factors", self.peft(fp32_factors=False)


def bench(
    k: int, n: int, adapters: int, *, tokens: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> Iterator[dict[str, Any]]:
    """One row a candidate of the shape K → N."""
    torch.manual_seed(0)
    layer = Layer(k, n, adapters, tokens, dtype, device)

    def make(_: int) -> Batch:
        x = torch.randn(tokens, k, dtype=dtype, device=device, requires_grad=True)
        return Batch(x, torch.randn(tokens, n, dtype=dtype, device=device))

    batches = measure.rotating(make, tokens * (k + n) * dtype.itemsize, device)
    timings = measure.compare(dict(layer.candidates()), batches, device, rounds=rounds)
    for name, timing in timings.items():
        ms = timing.quantiles()
        yield {
            "bench": "lora_linear", "candidate": name, "in": k, "out": n, "tokens": tokens, "adapters": adapters,
            "rank": RANK, "dtype": str(dtype).removeprefix("torch."), "pass": "forward + backward", "ms": ms,
            "ratio_to_frozen": timing.ratio(timings["frozen linear"]),
            # 4 M N K: y and dX, the frozen products alone, so that candidates compare.
            "frozen_tflops": round(4 * tokens * n * k / ms["p50"] / 1e9, 2), "rounds": rounds,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_lora", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the model; bfloat16 on cuda, float32 on cpu"
    )
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--out", type=Path, help="file of JSON lines to write; stdout otherwise")
    options = parser.parse_args(arguments)
    device = measure.device_of(options.device)
    if options.device == "cuda":
        shapes, dtype, tokens, rounds = GPU_SHAPES, torch.bfloat16, 8192, 100
    else:
        shapes, dtype, tokens, rounds = CPU_SHAPES, torch.float32, 1024, 30
    if options.dtype:
        dtype = getattr(torch, options.dtype)
    if options.quick:
        tokens, rounds = tokens // 2, max(10, rounds // 3)
    where = measure.provenance(device)
    rows: list[dict[str, Any]] = []
    if not importlib.util.find_spec("peft"):
        rows.append({"bench": "lora_linear", "candidate": "PEFT", "skipped": "peft is not installed", **where})
        print("bench_lora: peft is not installed, its rows are left out", file=sys.stderr)
    for k, n in shapes:
        for adapters in (1, 2):
            for row in bench(k, n, adapters, tokens=tokens, dtype=dtype, device=device, rounds=rounds):
                rows.append({**row, **where})
                print(
                    f"{k} → {n}, {adapters} adapters, {row['candidate']}: {row['ms']['p50']:.3f} ms, "
                    f"{row['ratio_to_frozen']['p50']:.3f} × frozen", file=sys.stderr,
                )
            if options.out:  # shape by shape: what a time limit cuts off is not all
                measure.write_rows(options.out, rows)
                rows.clear()
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
