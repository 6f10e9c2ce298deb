"""Kernels of what makes a LoRA linear's input, with the linear's thin product in them: RMSNorm and SwiGLU.

    h = x + scale · added        y = weight · round(h r), r = 1 / sqrt(mean(h²) + eps)        s = (y aᵀ) ⊙ m
                                 y = round(silu(gate)) ⊙ up                                   s = (y aᵀ) ⊙ m

y is rounded to its dtype before it is multiplied, so s is what `lora.down` makes of the y that is stored, without
reading it. All else is as in `norm`, `swiglu` and `lora`: the roundings, m, the order of sums. Backward is theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common, sums, swiglu, tiles

_SWIGLU_PROGRAMS = 4 * tiles.PROGRAMS
"""Programs wanted of SwiGLU: of 4 warps each, whose arithmetic several a multiprocessor hide behind their loads."""


@triton.jit
def norm_down_kernel(
    x, added, weight, h, y, rms, a, s, scales, columns, rows, M, K, R, piece, eps, scale,
    stride_x, stride_added, stride_h, stride_ar, stride_ak, stride_sp, stride_sm, stride_sr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """rms = r, and of the p-th piece of K y and s[p]; with `added`, h as well, which is x otherwise.

    Program (some blocks of M, block of R, p). Two turns over a block: the second, which needs r of whole rows, finds
    h in the second cache. Each piece and each block of R takes the whole first turn, so all write the same h.
    """
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    p = tl.program_id(2).to(tl.int64)
    last = p * piece + piece
    last = tl.where(last < K, last, K)
    for first in range(tl.program_id(0) * BLOCK_M, M, tl.num_programs(0) * BLOCK_M):
        m = first + tl.arange(0, BLOCK_M).to(tl.int64)
        squares = tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32)
        for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            k = start + tl.arange(0, BLOCK_K)
            there = (m[:, None] < M) & (k[None, :] < K)
            values = tl.load(x + m[:, None] * stride_x + k[None, :], mask=there, other=0.0)
            if added is not None:
                more = tl.load(added + m[:, None] * stride_added + k[None, :], mask=there, other=0.0)
                values = (values.to(tl.float32) + scale * more.to(tl.float32)).to(h.dtype.element_ty)
                tl.store(h + m[:, None] * stride_h + k[None, :], values, mask=there)
            wide = values.to(tl.float32)
            squares += wide * wide
        root = tl.rsqrt(tl.reduce(squares, 1, common.plus) / K + eps)
        tl.store(rms + m, root, mask=(m < M) & (tl.program_id(1) == 0) & (p == 0))
        if added is not None:
            tl.debug_barrier()  # h is read by other threads than wrote it
        total = tl.full((BLOCK_M, BLOCK_R), 0.0, tl.float32)
        for start in range(p * piece, last, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            inside = k < last
            there = (m[:, None] < M) & inside[None, :]
            values = tl.load(h + m[:, None] * stride_h + k[None, :], mask=there, other=0.0)
            w = tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
            a_tile = a + k[:, None] * stride_ak + r[None, :] * stride_ar
            a_values = tl.load(a_tile, mask=inside[:, None] & (r[None, :] < R), other=0.0)
            unit = (values.to(tl.float32) * root[:, None]).to(y.dtype.element_ty).to(tl.float32)
            y_values = (unit * w[None, :]).to(y.dtype.element_ty)
            tl.store(y + m[:, None] * K + k[None, :], y_values, mask=there & (tl.program_id(1) == 0))
            total = tl.dot(y_values, a_values, total, input_precision=PRECISION)
        if scales is not None:
            total = sums.masked(total, scales, columns, rows, None, m, r, M, R)
        place = s + p * stride_sp + m[:, None] * stride_sm + r[None, :] * stride_sr
        tl.store(place, total.to(s.dtype.element_ty), mask=(m[:, None] < M) & (r[None, :] < R))


@triton.jit
def swiglu_down_kernel(
    gate, up, y, a, s, scales, columns, rows, M, K, R, piece,
    stride_gate, stride_up, stride_ar, stride_ak, stride_sp, stride_sm, stride_sr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):
    """y and s[p] of the p-th piece of K. Program (block of M, block of R, p)."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    p = tl.program_id(2).to(tl.int64)
    last = p * piece + piece
    last = tl.where(last < K, last, K)
    total = tl.full((BLOCK_M, BLOCK_R), 0.0, tl.float32)
    for start in range(p * piece, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = k < last
        there = (m[:, None] < M) & inside[None, :]
        g = tl.load(gate + m[:, None] * stride_gate + k[None, :], mask=there, other=0.0).to(tl.float32)
        u = tl.load(up + m[:, None] * stride_up + k[None, :], mask=there, other=0.0).to(tl.float32)
        a_tile = a + k[:, None] * stride_ak + r[None, :] * stride_ar
        a_values = tl.load(a_tile, mask=inside[:, None] & (r[None, :] < R), other=0.0)
        silu = (g * swiglu.sigmoid(g)).to(y.dtype.element_ty).to(tl.float32)
        y_values = (silu * u).to(y.dtype.element_ty)
        tl.store(y + m[:, None] * K + k[None, :], y_values, mask=there & (tl.program_id(1) == 0))
        total = tl.dot(y_values, a_values, total, input_precision=PRECISION)
    if scales is not None:
        total = sums.masked(total, scales, columns, rows, None, m, r, M, R)
    place = s + p * stride_sp + m[:, None] * stride_sm + r[None, :] * stride_sr
    tl.store(place, total.to(s.dtype.element_ty), mask=(m[:, None] < M) & (r[None, :] < R))


class _Thin(NamedTuple):
    """How the thin product of a launch is laid out."""

    grid: tuple[int, int, int]
    s: Tensor
    out: Tensor
    """What the kernel writes: s, or partials (pieces, M, R) of it."""
    length: int
    """Of a piece of K."""
    tile: dict[str, int | bool | str]


def _thin(kernel: str, x: Tensor, r: int, programs: int) -> _Thin:
    m, k = x.shape
    tile = tiles.choose(kernel, x, r)
    grid = triton.cdiv(m, tile["BLOCK_M"]), triton.cdiv(r, tile["BLOCK_R"])
    pieces, length = sums.pieces(grid[0] * grid[1], k, tile["BLOCK_K"], programs)
    s = torch.empty((m, r), dtype=x.dtype, device=x.device)
    out = s[None] if pieces == 1 else torch.empty((pieces, m, r), dtype=torch.float32, device=x.device)
    return _Thin((*grid, pieces), s, out, length, tile)


def norm_down(
    x: Tensor, weight: Tensor, eps: float, a: Tensor, scales: Tensor, columns: Tensor | None = None,
    rows: Tensor | None = None, added: Tensor | None = None, scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(h, y, r, s): `norm.norm`'s results and s = (y aᵀ) ⊙ m (M, R) in their dtype.

    x, added (..., D), weight (D,), a (R, D) in one dtype; scales (R,) fp32; columns (R,) and rows (M,) int32; these
    contiguous.
    """
    flat = common.as_rows(x)
    more = None if added is None else common.as_rows(added)
    (m, k), r = flat.shape, a.shape[0]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h = x if added is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rms = torch.empty(m, dtype=torch.float32, device=x.device)
    if not m:
        return h, y, rms, y.new_zeros(m, r)
    (blocks, *others), s, out, length, tile = _thin("norm_down", flat, r, tiles.PROGRAMS)
    # No more rows at a time than half the second cache holds, so that their second read finds them: the other half is
    # for a, the weight and what is written.
    held = tiles.second_cache(x.device) // 2 // (tile["BLOCK_M"] * k * x.element_size())
    turns = triton.cdiv(blocks, max(tiles.PROGRAMS, held))
    programs = triton.cdiv(blocks, turns)
    whole = others[1] == 1
    normed = flat if added is None else h.view(m, k)
    common.launch(
        norm_down_kernel, (programs, *others), flat, more, weight.contiguous(), normed, y, rms, a, out,
        scales if whole else None, columns, rows if whole else None, m, k, r, length, eps, scale,
        flat.stride(0), 0 if more is None else more.stride(0), normed.stride(0), *a.stride(), *out.stride(), **tile,
    )
    return h, y, rms, s if whole else sums.add_up(out, s, scales, columns, rows)


def swiglu_down(
    gate: Tensor, up: Tensor, a: Tensor, scales: Tensor, columns: Tensor | None = None, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y, s): `swiglu.swiglu`'s y (..., I) and s = (y aᵀ) ⊙ m (M, R) in its dtype.

    gate, up (..., I), a (R, I) in one dtype; scales, columns and rows as in `norm_down`.
    """
    first, second = common.as_rows(gate), common.as_rows(up)
    (m, k), r = first.shape, a.shape[0]
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if not y.numel():
        return y, y.new_zeros(m, r)
    grid, s, out, length, tile = _thin("swiglu_down", first, r, _SWIGLU_PROGRAMS)
    whole = grid[2] == 1
    common.launch(
        swiglu_down_kernel, grid, first, second, y, a, out, scales if whole else None, columns,
        rows if whole else None, m, k, r, length, first.stride(0), second.stride(0), *a.stride(), *out.stride(), **tile,
    )
    return y, s if whole else sums.add_up(out, s, scales, columns, rows)
