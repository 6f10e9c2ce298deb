"""Inputs of what stands between a block's products, in awkward shapes and layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from numllm.ops import elementwise

LAYOUTS = ("packed", "rows apart", "turned")
"""How a matrix lies in memory: without gaps; as part of a wider one, as a fused linear gives it; transposed."""


@dataclasses.dataclass
class Case:
    """A call of one of `elementwise`'s functions, and the gradients of its results."""

    function: Callable[..., Tensor | Sequence[Tensor]]
    inputs: dict[str, Tensor]
    upstream: tuple[Tensor, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def by(self, impl: str) -> Callable[..., Tensor | Sequence[Tensor]]:
        """The function, to be called with the inputs."""
        return lambda **inputs: self.function(**inputs, **self.options, impl=impl)


class Maker:
    """Draws matrices in one dtype and layout."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device | str, layout: str) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.device, self.layout = dtype, device, layout

    def matrix(self, *shape: int, size: float = 1.0) -> Tensor:
        """Random values; the last two dimensions in the layout."""
        values = (torch.randn(shape, generator=self.generator) * size).to(self.dtype).to(self.device)
        if self.layout == "rows apart":
            room = values.new_full((*shape[:-1], shape[-1] * 2 + 3), float("nan"))
            return room[..., 2 : 2 + shape[-1]].copy_(values)
        if self.layout == "turned":
            return values.transpose(-1, -2).contiguous().transpose(-1, -2)
        return values


def norm(rows: int, size: int, *, dtype: torch.dtype, device: torch.device | str, layout: str = "packed") -> Case:
    """rms_norm of (rows, size), values of another size in every row."""
    make = Maker(rows * 1009 + size, dtype, device, layout)
    x = make.matrix(rows, size)
    x *= torch.logspace(-1, 1, max(rows, 1), device=device)[:rows, None].to(dtype)
    inputs = {"x": x, "weight": 1 + make.matrix(1, size)[0]}
    return Case(elementwise.rms_norm, inputs, (make.matrix(rows, size),), {"eps": 1e-5})


def add_norm(
    rows: int, size: int, scale: float, *, dtype: torch.dtype, device: torch.device | str, layout: str = "packed"
) -> Case:
    """add_rms_norm, of which both results are used."""
    case = norm(rows, size, dtype=dtype, device=device, layout=layout)
    make = Maker(rows * 1013 + size, dtype, device, layout)
    case.inputs["added"] = make.matrix(rows, size)
    options = case.options | {"scale": scale}
    return Case(elementwise.add_rms_norm, case.inputs, (make.matrix(rows, size), *case.upstream), options)


def swiglu(rows: int, size: int, *, dtype: torch.dtype, device: torch.device | str, layout: str = "packed") -> Case:
    """swiglu of (rows, size), gates far from 0 among them."""
    make = Maker(rows * 1019 + size, dtype, device, layout)
    inputs = {"gate": make.matrix(rows, size, size=4), "up": make.matrix(rows, size)}
    inputs["gate"][:, ::5] *= 8
    return Case(elementwise.swiglu, inputs, (make.matrix(rows, size),))


def rotation(
    batch: int, count: int, heads: int, kv_heads: int, pairs: int, rest: int, neighbours: bool, *, dtype: torch.dtype,
    device: torch.device | str, layout: str = "packed", apart: bool = False,
) -> Case:
    """rotate of the first 2 · pairs of 2 · pairs + rest features; apart: each row has its own positions."""
    from numllm.rope import rotations

    make = Maker(batch * count + heads * pairs, dtype, device, layout)
    size = 2 * pairs + rest
    q, k, dq, dk = (  # the layout a linear and attention leave them in
        make.matrix(batch, count, of * size).unflatten(-1, (of, size)).transpose(1, 2)
        for of in (heads, kv_heads, heads, kv_heads)
    )
    angles = torch.rand((batch if apart else 1, 1, count, pairs), generator=make.generator) * 6
    angles = rotations(angles, neighbours=neighbours).to(device)
    inputs = {"q": q, "k": k, "cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype)}
    return Case(elementwise.rotate, inputs, (dq, dk), {"neighbours": neighbours})
