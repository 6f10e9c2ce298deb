"""Forward and backward of LoRA linears that share their input: which products, by whom, in what order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .. import products
from .dropout import without_dropped, words
from .implementations import LORA_IMPLEMENTATIONS, by_kernels, lora_kernels


def forward(
    x: Tensor, ws: Sequence[Tensor], biases: Sequence[Tensor], a: Tensor, bs: Sequence[Tensor], s: Tensor | None,
    scales: Tensor, columns: Tensor | None, rows: Tensor | None, dropout: Tensor | None, seed: Tensor | None, impl: str,
) -> tuple[list[Tensor], Tensor]:
    """(ys, s = (x̃ aᵀ) ⊙ m), x flat; s is made unless it is given."""
    kernels, fused = _ways(impl, x)
    wide = product_dtype(impl, x)
    if s is None:
        s = down(x, a, scales, columns, rows, dropout, seed, impl)
    ys, given = [], x.to(wide)
    own = zip(ws, bs, _columns(s, bs), _columns(columns, bs), biases or [None] * len(ws), strict=True)
    for w, b, part, adapters, bias in own:
        if fused:
            ys.append(kernels.linear(x, w, bias, part, b.to(wide)))
        else:
            y = products.low_rank(part, b.to(wide).T, bias, _parts(adapters, rows, x))
            ys.append(products.add_products(y, (given, w.T)).to(x.dtype))
    return ys, s


def down(
    x: Tensor, a: Tensor, scales: Tensor, columns: Tensor | None, rows: Tensor | None, dropout: Tensor | None,
    seed: Tensor | None, impl: str,
) -> Tensor:
    """s = (x̃ aᵀ) ⊙ m (M, R) in the dtype of products, x flat."""
    kernels, wide = lora_kernels(impl, x), product_dtype(impl, x)
    if kernels:
        return kernels.down(x, a.to(wide), scales, columns, rows, dropout, None if dropout is None else words(seed))
    seen = x if dropout is None else without_dropped(x, dropout, seed)
    return _down(seen.to(wide), a.to(wide).T, scales, columns, rows, dropout)


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
            ds = (kernels.down(dy, low_b.T, *choice, rows, dropout) if kernels
                  else _down(dy, low_b, *choice, rows, dropout))
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
            dx = products.low_rank(ds, low_a, parts=_parts(columns, rows, ds))
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


def _down(
    x: Tensor, a: Tensor, scales: Tensor, columns: Tensor | None, rows: Tensor | None, dropout: Tensor | None
) -> Tensor:
    """(x a) ⊙ m: x (M, K), a (K, R) → (M, R)."""
    parts = _parts(columns, rows, x)
    if parts is None:
        s = x @ a
        s.mul_(scales if rows is None else torch.where(rows[:, None] == columns, scales, 0))
    else:
        s = x.new_zeros(len(x), len(scales))
        for tokens, own in parts:
            s[tokens, own] = (x[tokens] @ a[:, own]).mul_(scales[own])
    return s if dropout is None else s.mul_((1 / (1 - dropout))[:, None])


def _parts(columns: Tensor | None, rows: Tensor | None, x: Tensor) -> products.Parts | None:
    """The tokens and columns of each adapter where its tokens follow on one another, as those of rows put side by side
    do: no token is multiplied with columns of another adapter then. None elsewhere, and on a GPU, which would wait.
    dA and dB are sums over all tokens all the same: zeros do not change them, other bounds of the sum would.
    """
    if rows is None or x.is_cuda:
        return None
    tokens, own = _spans(rows), _spans(columns)
    if len(dict(tokens)) < len(tokens) or len(dict(own)) < len(own):
        return None
    return [(where, dict(own).get(adapter, slice(0))) for adapter, where in tokens]


def _spans(numbers: Tensor) -> list[tuple[int, slice]]:
    """The runs of equal numbers (n,), and where each is."""
    found, counts = (part.tolist() for part in numbers.unique_consecutive(return_counts=True))
    ends = itertools.accumulate(counts)
    return [(number, slice(end - count, end)) for number, count, end in zip(found, counts, ends, strict=True)]


def _ways(impl: str, x: Tensor) -> tuple[ModuleType | None, bool]:
    """(the module of kernels or None, whether the big product is theirs too)."""
    kernels = lora_kernels(impl, x)
    return kernels, kernels is not None and (impl == "triton-fused" or kernels.tiles.fused(x.device))


def product_dtype(impl: str, x: Tensor) -> torch.dtype:
    """What is multiplied in: the kernels' dtype is x's, torch's that of `products`."""
    return x.dtype if by_kernels(impl, x, LORA_IMPLEMENTATIONS) else products.product_dtype(x, len(x))
