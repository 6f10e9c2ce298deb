"""LoRA linears, forward and backward, against the frozen linears alone and against PEFT.

    python -m benchmarks.bench_lora --device cuda --out rows.jsonl

Timed: y, dX, dA and dB of rank-16 adapters in fp32 on a frozen linear, or on several that read the same x (q, k, v;
gate, up); for the frozen linears, y and dX. All candidates of a shape take turns in one run, so their ratios are of one
moment.
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
from numllm import ops, products
from numllm.ops.implementations import lora_kernels

RANK, ALPHA = 16, 32
GPU_SHAPES = [(4096, (4096,)), (3584, (18944,)), (18944, (3584,)), (3584, (3584, 512, 512)), (3584, (18944, 18944))]
CPU_SHAPES = [(1024, (1024,)), (896, (4864,)), (4864, (896,)), (896, (896, 128, 128))]
"""K and the Ns of linears that read the same x."""


class Batch(NamedTuple):
    """x (M, K), requiring its gradient, and the gradients dys, (M, N) each, of the outputs.

    wide_x (M, K + R) and wide_dy (M, N + R): the same for one linear, in buffers with room for s and dS.
    """

    x: Tensor
    dys: tuple[Tensor, ...]
    wide_x: Tensor
    wide_dy: Tensor


class Layer:
    """Frozen linears K → N of one x and their adapters' factors, stacked by linear."""

    def __init__(
        self, k: int, ns: Sequence[int], adapters: int, tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.adapters = adapters
        ranks = adapters * RANK
        self.ws = [torch.randn(n, k, dtype=dtype, device=device) / k**0.5 for n in ns]
        self.a = (torch.randn(len(ns) * ranks, k, device=device) / k**0.5).requires_grad_()
        self.bs = [(torch.randn(n, ranks, device=device) / ranks**0.5).requires_grad_() for n in ns]
        self.scales = torch.full((len(ns) * ranks,), ALPHA / RANK, device=device)
        own = torch.arange(adapters, dtype=torch.int32, device=device).repeat_interleave(RANK)
        self.columns = own.repeat(len(ns))
        self.rows = torch.arange(tokens, dtype=torch.int32, device=device) % adapters
        if len(ns) == 1:
            self.wb = torch.cat([self.ws[0], self.bs[0].detach().to(dtype)], dim=1)
            self.wa = torch.cat([self.ws[0], self.a.detach().to(dtype)])

    def batch(self, tokens: int) -> Batch:
        """Random inputs."""
        like = {"dtype": self.ws[0].dtype, "device": self.ws[0].device}
        ranks, k = self.bs[0].shape[1], self.a.shape[1]
        x = torch.randn(tokens, k, **like, requires_grad=True)
        dys = tuple(torch.randn(tokens, len(w), **like) for w in self.ws)
        room = torch.empty(tokens, ranks, **like)
        return Batch(x, dys, torch.cat([x.detach(), room], dim=1), torch.cat([dys[0], room], dim=1))

    def frozen(self, batch: Batch) -> None:
        """ys and dX of the linears without adapters."""
        torch.autograd.grad([F.linear(batch.x, w) for w in self.ws], batch.x, batch.dys)

    def numllm(self, batch: Batch, *, impl: str, by_row: bool, together: bool = True) -> tuple[Tensor, ...]:
        """(dX, dA, dBs…). by_row: each token through one adapter; else each through all."""
        rows, none = self.rows if by_row else None, [None] * len(self.ws)
        if together:
            ys = ops.lora_linears(
                batch.x, self.ws, none, self.a, self.bs, self.scales, self.columns, rows, impl
            )
        else:
            ranks = self.bs[0].shape[1]
            parts = zip(self.ws, none, self.a.split(ranks), self.bs, strict=True)
            choice = self.scales[:ranks], self.columns[:ranks], rows, impl
            ys = [ops.lora_linear(batch.x, *part, *choice) for part in parts]
        return torch.autograd.grad(ys, (batch.x, self.a, *self.bs), batch.dys)

    def augmented(self, batch: Batch) -> tuple[Tensor, ...]:
        """(dX, dA, dB) of one linear by y = [x | s]·[W | B]ᵀ and dX = [dY | dS]·[W ; A], each one product.

        x and dY lie in buffers with room for s and dS, where the layers before and after would have to write them.
        """
        w, k = self.ws[0], batch.x.shape[1]
        n, kernels = len(w), lora_kernels("auto", batch.x)
        low_a, low_b = self.a.detach().to(w.dtype), self.bs[0].detach().to(w.dtype)
        self.wb[:, k:], self.wa[n:] = low_b, low_a
        x, dy = batch.wide_x[:, :k], batch.wide_dy[:, :n]
        s = kernels.down(x, low_a, self.scales) if kernels else x @ low_a.T * self.scales
        batch.wide_x[:, k:] = s
        batch.wide_x @ self.wb.T  # y
        if kernels:
            ds, db = kernels.down_outer(dy, low_b, s, self.scales)
        else:
            ds, db = dy @ low_b * self.scales, products.outer(dy, s)
        batch.wide_dy[:, n:] = ds
        return batch.wide_dy @ self.wa, (kernels or products).outer(ds, x), db

    def peft(self, *, fp32_factors: bool) -> Callable[[Batch], None]:
        """The same by PEFT, every token through all adapters: its training has no adapter by row."""
        import peft

        class Holder(nn.Module):
            def __init__(self, linears: list[nn.Linear]) -> None:
                super().__init__()
                self.proj = nn.ModuleList(linears)

        linears = []
        for w in self.ws:
            linears.append(nn.Linear(*w.shape[::-1], bias=False, dtype=w.dtype, device=w.device))
            linears[-1].weight.data.copy_(w)
        names = [f"proj.{index}" for index in range(len(linears))]
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names)
        model = peft.get_peft_model(Holder(linears), config, autocast_adapter_dtype=fp32_factors)
        if self.adapters > 1:
            for index in range(1, self.adapters):
                model.add_adapter(f"adapter{index}", config, autocast_adapter_dtype=fp32_factors)
            model.base_model.set_adapter(["default", *(f"adapter{i}" for i in range(1, self.adapters))])
        layers = list(model.base_model.model.proj)
        factors = [p for layer in layers for name, p in layer.named_parameters() if "lora_" in name]
        for factor in factors:
            nn.init.normal_(factor, std=0.02)  # B starts at zero otherwise
        if any(not factor.requires_grad for factor in factors) or len(factors) != 2 * self.adapters * len(layers):
            raise RuntimeError(f"PEFT would not train all of its {self.adapters} adapters; the figures would lie")

        def call(batch: Batch) -> None:
            torch.autograd.grad([layer(batch.x) for layer in layers], (batch.x, *factors), batch.dys)

        return call

    def candidates(self) -> Iterator[tuple[str, Callable[[Batch], Any]]]:
        """(name, call) of all but the peers."""
        yield "frozen linear", self.frozen
        impls = {"numllm": "auto"}
        if self.ws[0].is_cuda:
            impls |= {"numllm, fused": "triton-fused", "numllm, torch": "torch"}
        for name, impl in impls.items():
            yield name, lambda batch, impl=impl: self.numllm(batch, impl=impl, by_row=False)
            if self.adapters > 1:
                yield f"{name}, by row", lambda batch, impl=impl: self.numllm(batch, impl=impl, by_row=True)
        if len(self.ws) > 1:
            yield "numllm, one by one", lambda batch: self.numllm(batch, impl="auto", by_row=False, together=False)
        else:
            yield "augmented product", self.augmented

    def peers(self) -> dict[str, Callable[[], Callable[[Batch], Any]]]:
        """Name → maker of the call of those that are installed."""
        if not importlib.util.find_spec("peft"):
            return {}
        found = {"PEFT": lambda: self.peft(fp32_factors=True)}
        if self.ws[0].dtype != torch.float32:
            found["PEFT, 16-bit factors"] = lambda: self.peft(fp32_factors=False)
        return found


def bench(
    k: int, ns: Sequence[int], adapters: int, *, tokens: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> Iterator[dict[str, Any]]:
    """One row a candidate of the shape K → Ns."""
    torch.manual_seed(0)
    layer = Layer(k, ns, adapters, tokens, dtype, device)
    n, out = sum(ns), ns[0] if len(ns) == 1 else " + ".join(map(str, ns))
    batches = measure.rotating(lambda _: layer.batch(tokens), tokens * (k + n) * dtype.itemsize, device)
    calls = dict(layer.candidates())
    for name, make in layer.peers().items():
        try:
            call = make()
            call(batches[0])
        except Exception as error:
            why = measure.reason(error)
            yield {"bench": "lora_linear", "candidate": name, "in": k, "out": out, "adapters": adapters, "skipped": why}
        else:
            calls[name] = call
    timings = measure.compare(calls, batches, device, rounds=rounds)
    for name, timing in timings.items():
        ms = timing.quantiles()
        yield {
            "bench": "lora_linear", "candidate": name, "in": k, "out": out, "tokens": tokens, "adapters": adapters,
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
    for k, ns in shapes:
        for adapters in (1, 2):
            for row in bench(k, ns, adapters, tokens=tokens, dtype=dtype, device=device, rounds=rounds):
                rows.append({**row, **where})
                if "skipped" in row:
                    print(f"bench_lora: {row['candidate']} is left out: {row['skipped']}", file=sys.stderr)
                    continue
                print(
                    f"{k} → {row['out']}, {adapters} adapters, {row['candidate']}: {row['ms']['p50']:.3f} ms, "
                    f"{row['ratio_to_frozen']['p50']:.3f} × frozen", file=sys.stderr,
                )
            if options.out:  # shape by shape: what a time limit cuts off is not all
                measure.write_rows(options.out, rows)
                rows.clear()
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
