"""Norm and SwiGLU with the LoRA linears behind them: the adapters' first product by a read of x, or by what makes x.

    python -m benchmarks.bench_producer --out rows.jsonl

For a GPU. Rank-16 adapters in fp32, the shapes of Qwen2.5-7B. Of each case three parts are timed: what makes x, with
s, alone; forward with the linears; forward and backward. *apart* has s by a read of x, *produced* by what makes x,
*frozen* has no adapters. All candidates of a part take turns in one run.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.bench_lora import ALPHA, RANK
from numllm import ops
from numllm.ops import elementwise, passes

EPS = 1e-6
SHAPE = {"tokens": 8192, "width": 3584, "kv": 512, "inner": 18944}
"""Two rows of 4096 tokens of Qwen2.5-7B."""
PARTS = ("x and s", "forward", "forward + backward")
IMPLS = {"apart": "triton", "produced": "triton-produced"}
"""How s is made: the impl of the linears."""


class Case(NamedTuple):
    """What makes x of inputs (tokens, D or I) each, and the outputs of the linears that read it."""

    name: str
    width: int
    inputs: int
    ns: tuple[int, ...]
    alone: Callable[..., tuple[Tensor, ...]]
    """inputs → (*other results, x)."""
    produced: Callable[..., tuple[Any, ...]]
    """(*inputs, thin) → (*other results, x, thin with s)."""


class Batch(NamedTuple):
    """Inputs that require gradients, and the gradients of all results but x."""

    inputs: list[Tensor]
    upstream: list[Tensor]


def cases(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Before q, k and v; before gate and up, behind the sum; before down."""
    width, inner = shape["width"], shape["inner"]
    weight = torch.rand(width, dtype=dtype, device=device)
    yield Case(
        "RMSNorm → q, k, v", width, 1, (width, shape["kv"], shape["kv"]),
        lambda x: (elementwise.rms_norm(x, weight, EPS),), lambda x, thin: ops.norm_down(x, weight, EPS, thin),
    )
    yield Case(
        "sum and RMSNorm → gate, up", width, 2, (inner, inner),
        lambda x, y: elementwise.add_rms_norm(x, y, weight, EPS),
        lambda x, y, thin: ops.add_norm_down(x, y, weight, EPS, 1.0, thin),
    )
    yield Case(
        "SwiGLU → down", inner, 2, (width,),
        lambda gate, up: (elementwise.swiglu(gate, up),), lambda gate, up, thin: ops.swiglu_down(gate, up, thin),
    )


class Layer:
    """A case's linears and their adapters' factors."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        self.case, ranks = case, RANK * len(case.ns)
        self.ws = [torch.randn(n, case.width, dtype=dtype, device=device) / case.width**0.5 for n in case.ns]
        self.a = (torch.randn(ranks, case.width, device=device) / case.width**0.5).requires_grad_()
        self.bs = [(torch.randn(n, RANK, device=device) / RANK**0.5).requires_grad_() for n in case.ns]
        self.scales = torch.full((ranks,), ALPHA / RANK, device=device)

    def batch(self, tokens: int) -> Batch:
        """Random inputs."""
        like = {"dtype": self.ws[0].dtype, "device": self.ws[0].device}
        width, more = self.case.width, "sum" in self.case.name
        inputs = [torch.randn(tokens, width, **like, requires_grad=True) for _ in range(self.case.inputs)]
        return Batch(inputs, [torch.randn(tokens, n, **like) for n in ((width,) * more + self.case.ns)])

    def made(self, way: str, batch: Batch) -> list[Tensor]:
        """[*other results, x, s] by a way of IMPLS."""
        impl = IMPLS[way]
        if way == "produced":
            *found, thin = self.case.produced(*batch.inputs, ops.Thin(self.a, self.scales, None, None, impl))
            return [*found, thin.s]
        found = self.case.alone(*batch.inputs)
        with torch.no_grad():
            return [*found, passes.down(found[-1], self.a, self.scales, None, None, None, None, impl)]

    def results(self, way: str, batch: Batch) -> list[Tensor]:
        """Other results, and what the linears give; without adapters where the way is "frozen"."""
        if way == "frozen":
            *more, x = self.case.alone(*batch.inputs)
            return [*more, *(F.linear(x, w) for w in self.ws)]
        *more, x, s = self.made(way, batch)
        none = [None] * len(self.ws)
        return [*more, *ops.lora_linears(x, self.ws, none, self.a, self.bs, self.scales, None, None, IMPLS[way], s=s)]

    def run(self, part: str, way: str, batch: Batch) -> Sequence[Tensor]:
        """A part of PARTS, by a way of IMPLS or "frozen"."""
        if part == "x and s":
            return self.case.alone(*batch.inputs) if way == "frozen" else self.made(way, batch)
        found = self.results(way, batch)
        if part == "forward":
            return found
        return torch.autograd.grad(
            found, [*batch.inputs, *(() if way == "frozen" else (self.a, *self.bs))], batch.upstream
        )


def bench(
    case: Case, *, tokens: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> Iterator[dict[str, Any]]:
    """One row a part and candidate. RuntimeError when the two ways differ."""
    torch.manual_seed(0)
    layer = Layer(case, dtype, device)
    moved = tokens * case.width * case.inputs * dtype.itemsize
    batches = measure.rotating(lambda _: layer.batch(tokens), moved, device)
    for part in PARTS:
        for one, other in zip(*(layer.run(part, way, batches[0]) for way in IMPLS), strict=True):
            off = (one.float() - other.float()).norm() / other.float().norm()
            if not off < max(1e-4, 8 * torch.finfo(dtype).eps):
                raise RuntimeError(f"{case.name}, {part}: the two ways differ by {off:.2g}; they are not timed")
        calls = {way: functools.partial(layer.run, part, way) for way in ("frozen", *IMPLS)}
        timings = measure.compare(calls, batches, device, rounds=rounds)
        for name, timing in timings.items():
            yield {
                "bench": "lora_producer", "case": case.name, "candidate": name, "pass": part, "in": case.width,
                "out": " + ".join(map(str, case.ns)), "tokens": tokens, "rank": RANK,
                "dtype": str(dtype).removeprefix("torch."), "ms": timing.quantiles(),
                "ratio_to_frozen": timing.ratio(timings["frozen"]), "rounds": rounds,
            }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_producer", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--out", type=Path, help="file of JSON lines to write; stdout otherwise")
    options = parser.parse_args(arguments)
    device, dtype = measure.device_of("cuda"), torch.bfloat16
    shape, rounds = ({**SHAPE, "tokens": SHAPE["tokens"] // 2}, 15) if options.quick else (SHAPE, 50)
    where = measure.provenance(device)
    for case in cases(shape, dtype, device):
        for row in bench(case, tokens=shape["tokens"], dtype=dtype, device=device, rounds=rounds):
            measure.give_rows(options.out, [{**row, **where}])
            print(
                f"{case.name}, {row['pass']}, {row['candidate']}: {row['ms']['p50']:.3f} ms, "
                f"{row['ratio_to_frozen']['p50']:.3f} × frozen", file=sys.stderr,
            )


if __name__ == "__main__":
    main()
