"""Sums that several programs share, in fp32 partials added in order, and the mask of adapters on what they give."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import common, tiles


@triton.jit
def masked(values, scales, columns, rows, shares, m, r, M, R):
    """values ⊙ mask, of the tile at rows m and columns r; what is off is 0 even where the value is infinite."""
    scale = tl.load(scales + r, mask=r < R, other=0.0)
    values = values * scale[None, :]
    if shares is not None:
        share = tl.load(shares + m, mask=m < M, other=0.0)
        values = values / (1.0 - share)[:, None]
    if rows is not None:
        row = tl.load(rows + m, mask=m < M, other=-1)
        column = tl.load(columns + r, mask=r < R, other=-2)
        values = tl.where(row[:, None] == column[None, :], values, 0.0)
    return values


@triton.jit
def reduce_kernel(
    partials, out, scales, columns, rows, shares, P, M, R, stride_pp, stride_pm, stride_pr, stride_om, stride_or,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, UNROLL: tl.constexpr,
):
    """out = Σ_p partials[p] in order, masked when `scales` is given. Program (block of M, block of R)."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    there = (m[:, None] < M) & (r[None, :] < R)
    tile = partials + m[:, None] * stride_pm + r[None, :] * stride_pr
    total = tl.full((BLOCK_M, BLOCK_R), 0.0, tl.float32)
    for start in range(0, P, UNROLL):  # unrolled: UNROLL loads in flight
        for step in tl.static_range(UNROLL):
            total += tl.load(tile + step * stride_pp, mask=there & (start + step < P), other=0.0)
        tile += UNROLL * stride_pp
    if scales is not None:
        total = masked(total, scales, columns, rows, shares, m, r, M, R)
    place = out + m[:, None] * stride_om + r[None, :] * stride_or
    tl.store(place, total.to(out.dtype.element_ty), mask=there)


def pieces(programs: int, extent: int, block: int, least: int = tiles.PROGRAMS) -> tuple[int, int]:
    """(pieces, length of one): a sum over `extent` in pieces of whole blocks, so that there are `least` programs.

    A piece has at least 4 blocks. Follows from shapes only, so that one shape has one order of summation.
    """
    blocks = -(-extent // block)
    wanted = max(1, min(-(-least // programs), blocks // 4))
    length = -(-blocks // wanted) * block
    return -(-extent // length), length


def add_up(
    partials: Tensor, out: Tensor, scales: Tensor | None = None, columns: Tensor | None = None,
    rows: Tensor | None = None, shares: Tensor | None = None,
) -> Tensor:
    """out (M, R) = Σ partials (P, M, R), masked when `scales` is given."""
    count, m, r = partials.shape
    block_r = min(triton.next_power_of_2(r), 128)
    block_m = 512 // block_r
    grid = (triton.cdiv(m, block_m), triton.cdiv(r, block_r))
    common.launch(
        reduce_kernel, grid, partials, out, scales, columns, rows, shares, count, m, r,
        *partials.stride(), *out.stride(), BLOCK_M=block_m, BLOCK_R=block_r, UNROLL=8, num_warps=4,
    )
    return out
