"""Inputs of the LoRA linear in awkward shapes, and the tolerance: torch's own error in the same precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from numllm import reference

SCALES = (2.0, 0.7, 1.3)
SEED = 2**62 + 3**30


@dataclasses.dataclass
class Case:
    """One call of the LoRA linear with the gradient of its output."""

    x: Tensor
    w: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scales: Tensor
    columns: Tensor
    rows: Tensor | None
    dy: Tensor
    shares: Tensor | None = None
    """Of dropout; `SEED` is its seed."""
    z: Tensor | float = 1.0

    def to(self, dtype: torch.dtype) -> Case:
        """The same values in another precision."""
        return Case(**{
            field.name: value.to(dtype)
            if isinstance(value := getattr(self, field.name), Tensor) and value.is_floating_point()
            else value
            for field in dataclasses.fields(self)
        })


def make_case(
    m: int, n: int, k: int, ranks: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu",
    rows: str | None = None, bias: bool = False, strided: bool = False, dropout: bool = False,
) -> Case:
    """Random inputs: `rows` None, "none" (−1 everywhere) or "mixed" (adapters and −1 in turn).

    strided: every matrix is a part of a larger one, x and b transposed as well. dropout: of 0, a half, 0, … of the
    entries.
    """
    generator = torch.Generator().manual_seed(m * 7919 + n * 104729 + k)

    def matrix(height: int, width: int, size: float = 1.0, turned: bool = False) -> Tensor:
        values = torch.randn(height, width, generator=generator) * size
        if not strided:
            return values.to(dtype=dtype, device=device)
        room = torch.full((width + 3, height + 5) if turned else (height + 3, width + 5), float("nan"))
        room = room.to(dtype=dtype, device=device)
        part = (room.T if turned else room)[1 : 1 + height, 2 : 2 + width]
        return part.copy_(values)

    r = sum(ranks)
    of_column = torch.arange(len(ranks), dtype=torch.int32).repeat_interleave(torch.tensor(ranks)).to(device)
    scales = torch.tensor(SCALES[: len(ranks)])[of_column.cpu()].to(device)
    choices = {
        None: None,
        "none": torch.full((m,), -1, dtype=torch.int32, device=device),
        "mixed": (torch.arange(m, device=device) % (len(ranks) + 1) - 1).to(torch.int32),
    }
    more = {}
    if dropout:
        shares = 0.5 * (torch.arange(m) % 2)
        more = {"shares": shares.to(device), "z": (~reference.dropped(m, k, shares, SEED)).to(device, dtype)}
    return Case(
        **more, x=matrix(m, k, turned=True), w=matrix(n, k, k**-0.5), a=matrix(r, k, k**-0.5),
        b=matrix(n, r, r**-0.5, turned=True), bias=matrix(1, n)[0] if bias else None,
        scales=scales, columns=of_column, rows=choices[rows], dy=matrix(m, n),
    )


def expected(case: Case) -> dict[str, Tensor]:
    """y, dX, dA and dB by the reference."""
    choice = case.scales, case.columns, case.rows, case.shares, case.z
    y = reference.lora_linear(case.x, case.w, case.bias, case.a, case.b, *choice)
    dx, da, db = reference.lora_linear_backward(case.dy, case.x, case.w, case.a, case.b, *choice)
    return {"y": y, "dx": dx, "da": da, "db": db}


def check(got: dict[str, Tensor], case: Case) -> None:
    """|kernel − fp64| ≤ |torch in the kernel's precision − fp64| + a few units in the last place, at the largest.

    Both errors are maxima over the tensor.
    """
    exact, rough = expected(case.to(torch.float64)), expected(case)
    for name, value in got.items():
        assert value.shape == exact[name].shape, name
        assert torch.isfinite(value).all(), f"{name} has values that were never written"
        if not value.numel():
            continue
        size = exact[name].abs().max()
        allowed = (rough[name].double() - exact[name]).abs().max() + 4 * torch.finfo(case.x.dtype).eps * size
        error = (value.double() - exact[name]).abs().max()
        assert error <= allowed, f"{name}: off by {error:.3g}, torch in {case.x.dtype} is within {allowed:.3g}"
