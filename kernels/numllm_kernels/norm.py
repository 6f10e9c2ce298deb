"""Kernels of RMSNorm, alone or behind a residual sum, forward and backward.

    h = x + scale · added        r = 1 / sqrt(mean(h²) + eps)        y = weight · round(h r)
    g = dY ⊙ weight              dh = dH + r (g − (h r) mean(g ⊙ h r))
    dx = dh                      d(added) = scale · dh               d(weight) = Σ rows dY ⊙ round(h r)

Without `added`, h = x and there is no dH. h is rounded to x's dtype before it is normed, as torch's own sum would be,
and round() is to x's dtype: the roundings of the model in torch. fp32, fp16 or bf16 in, fp32 inside. A row is held in
registers: what is read is read once, what is written is written once. No atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common

_TILE = 4096
"""Elements that a program holds at a time, where D is no larger."""
_PROGRAMS = 512
"""Programs that share the rows where d(weight) is summed: a partial sum of each, in fp32."""


@triton.jit
def norm_kernel(
    x, added, weight, h, y, rms, M, D, eps, scale, stride_x, stride_added,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """y and rms = r of BLOCK_M rows; with `added`, h as well."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    there = (m[:, None] < M) & (d[None, :] < D)
    place = m[:, None] * D + d[None, :]
    # The weight is every program's: what is read once leaves the first cache to it.
    values = tl.load(x + m[:, None] * stride_x + d[None, :], mask=there, other=0.0, eviction_policy="evict_first")
    w = tl.load(weight + d, mask=d < D, other=0.0, eviction_policy="evict_last").to(tl.float32)
    if added is not None:
        more = added + m[:, None] * stride_added + d[None, :]
        more = tl.load(more, mask=there, other=0.0, eviction_policy="evict_first").to(tl.float32)
        values = (values.to(tl.float32) + scale * more).to(h.dtype.element_ty)
        tl.store(h + place, values, mask=there)
    values = values.to(tl.float32)
    r = tl.rsqrt(tl.reduce(values * values, 1, common.plus) / D + eps)
    unit = (values * r[:, None]).to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + place, (unit * w[None, :]).to(y.dtype.element_ty), mask=there)
    tl.store(rms + m, r, mask=m < M)


@triton.jit
def norm_backward_kernel(
    dy, dh, h, weight, rms, dx, dadded, dweight, M, D, tiles, scale, stride_dy, stride_dh, stride_h,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """dx of `tiles` · BLOCK_M rows; d(added) and this program's part of d(weight) where there is room for them."""
    d = tl.arange(0, BLOCK_D)
    w = tl.load(weight + d, mask=d < D, other=0.0, eviction_policy="evict_last").to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * tiles * BLOCK_M
    total = tl.full((BLOCK_M, BLOCK_D), 0.0, tl.float32)
    for tile in range(tiles):
        m = first + tile * BLOCK_M + tl.arange(0, BLOCK_M)
        there = (m[:, None] < M) & (d[None, :] < D)
        values = h + m[:, None] * stride_h + d[None, :]
        values = tl.load(values, mask=there, other=0.0, eviction_policy="evict_first").to(tl.float32)
        grads = dy + m[:, None] * stride_dy + d[None, :]
        grads = tl.load(grads, mask=there, other=0.0, eviction_policy="evict_first").to(tl.float32)
        r = tl.load(rms + m, mask=m < M, other=0.0)
        unit = values * r[:, None]
        g = grads * w[None, :]
        shared = tl.reduce(g * unit, 1, common.plus) / D
        found = r[:, None] * (g - unit * shared[:, None])
        if dh is not None:
            straight = dh + m[:, None] * stride_dh + d[None, :]
            found += tl.load(straight, mask=there, other=0.0, eviction_policy="evict_first").to(tl.float32)
        place = m[:, None] * D + d[None, :]
        tl.store(dx + place, found.to(dx.dtype.element_ty), mask=there)
        if dadded is not None:
            tl.store(dadded + place, (found * scale).to(dadded.dtype.element_ty), mask=there)
        if dweight is not None:
            total += grads * unit.to(dx.dtype.element_ty).to(tl.float32)
    if dweight is not None:
        tl.store(dweight + tl.program_id(0) * D + d, tl.reduce(total, 0, common.plus), mask=d < D)


def _tile(rows: int, size: int) -> dict[str, int]:
    block_d = common.power_of_two(size)
    block_m = max(1, min(_TILE // block_d, common.power_of_two(max(rows, 1))))
    warps = max(1, min(block_m * block_d // 512, common.most_warps()))
    return {"BLOCK_M": block_m, "BLOCK_D": block_d, "num_warps": warps}


def norm(
    x: Tensor, weight: Tensor, eps: float, added: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(h, y, r): x, added (..., D), weight (D,) in one dtype → h, y (..., D), r (M,) fp32. h is x without added."""
    flat = common.as_rows(x)
    more = None if added is None else common.as_rows(added)
    m, size = flat.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h = x if added is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rms = torch.empty(m, dtype=torch.float32, device=x.device)
    if flat.numel():
        tile = _tile(m, size)
        common.launch(
            norm_kernel, (triton.cdiv(m, tile["BLOCK_M"]),), flat, more, weight.contiguous(), h, y, rms, m, size, eps,
            scale, flat.stride(0), 0 if more is None else more.stride(0), **tile,
        )
    return h, y, rms


def norm_backward(
    dy: Tensor, h: Tensor, weight: Tensor, rms: Tensor, dh: Tensor | None = None, scale: float = 1.0,
    needs_weight: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dx, d(added), d(weight)): dy and dh, the gradients of y and of h, (..., D) → (..., D), and (D,) or None.

    d(added) is dx where scale = 1 or dh is None.
    """
    flat, grads = common.as_rows(h), common.as_rows(dy)
    straight = None if dh is None else common.as_rows(dh)
    m, size = flat.shape
    dx = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    dadded = None if dh is None or scale == 1 else torch.empty(h.shape, dtype=h.dtype, device=h.device)
    if not flat.numel():
        return dx, dx if dadded is None else dadded, torch.zeros_like(weight) if needs_weight else None
    tile = _tile(m, size)
    blocks = triton.cdiv(m, tile["BLOCK_M"])
    tiles = triton.cdiv(blocks, _PROGRAMS) if needs_weight else 1
    programs = triton.cdiv(blocks, tiles)
    partials = torch.empty((programs, size), dtype=torch.float32, device=h.device) if needs_weight else None
    common.launch(
        norm_backward_kernel, (programs,), grads, straight, flat, weight.contiguous(), rms, dx, dadded, partials, m,
        size, tiles, scale, grads.stride(0), 0 if straight is None else straight.stride(0), flat.stride(0), **tile,
    )
    dweight = partials.sum(0).to(weight.dtype) if needs_weight else None
    return dx, dx if dadded is None else dadded, dweight
