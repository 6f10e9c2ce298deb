"""Forward and backward of LoRA linears that share their input: which products, by whom, in what order."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .. import products
from .dropout import without_dropped, words
from .implementations import kernels_for


def forward(
    x: Tensor, ws: Sequence[Tensor], biases: Sequence[Tensor], a: Tensor, bs: Sequence[Tensor], scales: Tensor,
    columns: Tensor | None, rows: Tensor | None, dropout: Tensor | None, seed: Tensor | None, impl: str,
) -> tuple[list[Tensor], Tensor]:
    """(ys, s = (x̃ aᵀ) ⊙ m), x flat."""
    kernels, fused = _ways(impl, x)
    wide = product_dtype(impl, x)
    low_a = a.to(wide)
    if kernels:
        s = kernels.down(x, low_a, scales, columns, rows, dropout, None if dropout is None else words(seed))
    else:
        seen = x if dropout is None else without_dropped(x, dropout, seed)
        s = _mask(seen.to(wide) @ low_a.T, scales, columns, rows, dropout)
    ys, given = [], x.to(wide)
    for w, b, part, bias in zip(ws, bs, _columns(s, bs), biases or [None] * len(ws), strict=True):
        if fused:
            ys.append(kernels.linear(x, w, bias, part, b.to(wide)))
        else:
            ys.append(products.add_products(products.low_rank(part, b.to(wide).T, bias), (given, w.T)).to(x.dtype))
    return ys, s


def backward(
    dys: Sequence[Tensor], x: Tensor | None, ws: Sequence[Tensor], a: Tensor, bs: Sequence[Tensor], s: Tensor | None,
    scales: Tensor, columns: Tensor | None, rows: Tensor | None, dropout: Tensor | None, seed: Tensor | None,
    impl: str, needs_x: bool, needs_a: bool, needs_bs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """(dX, dA, dBs), each None unless needed; x is needed for dA, s for dBs."""
    kernels, fused = _ways(impl, dys[0])
    dtype = dys[0].dtype
    wide = product_dtype(impl, dys[0])
    low_a, dys = a.to(wide), [dy.to(wide) for dy in dys]
    parts, dbs = [], []
    own = zip(
        dys, bs, _columns(s, bs), scales.split(ranks(bs)), _columns(columns, bs), needs_bs, strict=True
    )
    for dy, b, part, *choice, needs_b in own:
        low_b = b.to(wide)
        ds = db = None
        if kernels and needs_b and (needs_x or needs_a):
            ds, db = kernels.down_outer(dy, low_b, part, *choice, rows, dropout)
        elif needs_b:
            db = (kernels.outer if kernels else products.outer)(part, dy).T
        if ds is None and (needs_x or needs_a):
            ds = kernels.down(dy, low_b.T, *choice, rows, dropout) if kernels else _mask(
                dy @ low_b, *choice, rows, dropout
            )
        parts.append(ds)
        dbs.append(None if db is None else db.to(b.dtype))
    if not needs_x and not needs_a:
        return None, None, dbs
    ds = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    drops = None if dropout is None else (dropout, words(seed)) if kernels else (dropout, seed)
    dx = da = None
    if needs_x:
        big = list(zip(dys, ws, strict=True))
        if kernels and drops:
            dx = kernels.up(ds, low_a.T, *drops)
        elif fused:
            dy, w = big.pop(0)
            dx = kernels.linear(dy, w.T, None, ds, low_a.T)
        else:
            dx = products.low_rank(ds, low_a)
            dx = dx if drops is None else without_dropped(dx, *drops)
        dx = products.add_products(dx, *big).to(dtype)
    if needs_a and kernels:
        da = kernels.outer(ds, x, *(drops or ())).to(a.dtype)
    elif needs_a:
        seen = x if drops is None else without_dropped(x, *drops)
        da = products.outer(ds, seen.to(ds.dtype)).to(a.dtype)
    return dx, da, dbs


def ranks(bs: Sequence[Tensor]) -> list[int]:
    """Rᵢ of each b (Nᵢ, Rᵢ)."""
    return [b.shape[1] for b in bs]


def _columns(s: Tensor | None, bs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Each linear's columns of s (M, ΣR), or of (ΣR,)."""
    return [None] * len(bs) if s is None else s.split(ranks(bs), dim=-1)


def _mask(
    s: Tensor, scales: Tensor, columns: Tensor | None, rows: Tensor | None, dropout: Tensor | None
) -> Tensor:
    """s ⊙ m, in place."""
    s.mul_(scales if rows is None else torch.where(rows[:, None] == columns, scales, 0))
    return s if dropout is None else s.mul_((1 / (1 - dropout))[:, None])


def _ways(impl: str, x: Tensor) -> tuple[ModuleType | None, bool]:
    """(the module of kernels or None, whether the big product is theirs too)."""
    kernels = kernels_for(impl, x)
    return kernels, kernels is not None and (impl == "triton-fused" or kernels.tiles.fused(x.device))


def product_dtype(impl: str, x: Tensor) -> torch.dtype:
    """What is multiplied in: the kernels' dtype is x's, torch's that of `products`."""
    return x.dtype if kernels_for(impl, x) else products.product_dtype(x, len(x))
