"""Kernels of the LoRA linear: the products with a thin side, and a matrix product with a low-rank epilogue.

    s = (x aᵀ) ⊙ m          y = x wᵀ + s bᵀ + bias
    dS = (dY b) ⊙ m         dX = dY w + dS a         dA = dSᵀ x        dB = dYᵀ s

x (M, K), w (N, K), a (R, K), b (N, R), s (M, R). m[t, c] is scales[c] where token t goes through the adapter
of column c (rows[t] == columns[c], or rows is None) and 0 elsewhere; it is never materialised.

With dropout, m is divided by 1 − shares[t], and x in s and dA, and dS a in dX, are 0 where an entry is dropped. Which
are is a function of token, entry and a seed of two 32-bit words (low, high), computed where it is needed: `_dropped`.

fp32, fp16 or bf16 in, fp32 accumulation. Any strides. No atomics: sums split over programs go through fp32
partials that are added in order, so the same call gives the same bits. kernels/README.md has the derivations.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common, sums, tiles


@triton.jit
def _mix(h):
    """Words of 32 bits, mixed (after Wellons' lowbias32)."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    return (h ^ (h >> 15)) * 0x846CA68B


@triton.jit
def _word_of_tokens(m, low, high):
    return _mix(_mix(m.to(tl.uint32) ^ low.to(tl.uint32)) ^ high.to(tl.uint32))


@triton.jit
def _word_of_entries(k, low, high):
    return _mix(_mix((~k).to(tl.uint32) ^ high.to(tl.uint32)) ^ low.to(tl.uint32))


@triton.jit
def _dropped(words, shares):
    """Whether entries are dropped: words are a token's ⊕ an entry's, shares (of the same shape) their tokens'."""
    return (_mix(words) >> 8).to(tl.float32) * 5.9604644775390625e-08 < shares  # 2⁻²⁴


@triton.jit(do_not_specialize=["low", "high"])
def down_kernel(
    x, a, out, scales, columns, rows, shares, low, high, M, K, R, piece,
    stride_xm, stride_xk, stride_ar, stride_ak, stride_op, stride_om, stride_or,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):
    """out[p] = x[:, p-th piece of K] aᵀ, masked if `scales` is given; x with dropout if `low` is.

    Program (block of M, block of R, p).
    """
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    p = tl.program_id(2).to(tl.int64)
    k = p * piece + tl.arange(0, BLOCK_K)
    x_tile = x + m[:, None] * stride_xm + k[None, :] * stride_xk
    a_tile = a + k[:, None] * stride_ak + r[None, :] * stride_ar
    last = p * piece + piece
    last = tl.where(last < K, last, K)
    if low is not None:
        share = tl.load(shares + m, mask=m < M, other=0.0)
        tokens = _word_of_tokens(m, low, high)
    total = tl.full((BLOCK_M, BLOCK_R), 0.0, tl.float32)
    for start in range(p * piece, last, BLOCK_K):
        inside = tl.arange(0, BLOCK_K) < last - start
        x_values = tl.load(x_tile, mask=(m[:, None] < M) & inside[None, :], other=0.0)
        if low is not None:
            entries = _word_of_entries(start + tl.arange(0, BLOCK_K), low, high)
            x_values = tl.where(_dropped(tokens[:, None] ^ entries[None, :], share[:, None]), 0.0, x_values)
            x_values = x_values.to(x.dtype.element_ty)
        a_values = tl.load(a_tile, mask=inside[:, None] & (r[None, :] < R), other=0.0)
        total = tl.dot(x_values, a_values, total, input_precision=PRECISION)
        x_tile += BLOCK_K * stride_xk
        a_tile += BLOCK_K * stride_ak
    if scales is not None:
        total = sums.masked(total, scales, columns, rows, shares, m, r, M, R)
    place = out + p * stride_op + m[:, None] * stride_om + r[None, :] * stride_or
    tl.store(place, total.to(out.dtype.element_ty), mask=(m[:, None] < M) & (r[None, :] < R))


@triton.jit(do_not_specialize=["low", "high"])
def linear_kernel(
    x, w, bias, s, b, y, shares, low, high, M, N, K, R,
    stride_xm, stride_xk, stride_wn, stride_wk, stride_sm, stride_sr, stride_bn, stride_br,
    stride_ym, stride_yn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
    GROUP_M: tl.constexpr, PRECISION: tl.constexpr,
):
    """y = x wᵀ + s bᵀ + bias, a tile a program, in bands of GROUP_M row blocks so that w's tiles stay in L2.

    With dropout if `low` is given; then K is 0.
    """
    tile = tl.program_id(0)
    blocks_m = (M + BLOCK_M - 1) // BLOCK_M
    blocks_n = (N + BLOCK_N - 1) // BLOCK_N
    band = tile // (GROUP_M * blocks_n)
    height = blocks_m - band * GROUP_M
    height = tl.where(height < GROUP_M, height, GROUP_M)
    place = tile - band * GROUP_M * blocks_n
    m = (band * GROUP_M + place % height).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (place // height).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_tile = x + m[:, None] * stride_xm + k[None, :] * stride_xk
    w_tile = w + k[:, None] * stride_wk + n[None, :] * stride_wn
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        x_values = tl.load(x_tile, mask=(m[:, None] < M) & inside[None, :], other=0.0)
        w_values = tl.load(w_tile, mask=inside[:, None] & (n[None, :] < N), other=0.0)
        total = tl.dot(x_values, w_values, total, input_precision=PRECISION)
        x_tile += BLOCK_K * stride_xk
        w_tile += BLOCK_K * stride_wk
    for start in range(0, R, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        s_tile = s + m[:, None] * stride_sm + r[None, :] * stride_sr
        b_tile = b + r[:, None] * stride_br + n[None, :] * stride_bn
        s_values = tl.load(s_tile, mask=(m[:, None] < M) & (r[None, :] < R), other=0.0)
        b_values = tl.load(b_tile, mask=(r[:, None] < R) & (n[None, :] < N), other=0.0)
        total = tl.dot(s_values, b_values, total, input_precision=PRECISION)
    if low is not None:
        share = tl.load(shares + m, mask=m < M, other=0.0)
        words = _word_of_tokens(m, low, high)[:, None] ^ _word_of_entries(n, low, high)[None, :]
        total = tl.where(_dropped(words, share[:, None]), 0.0, total)
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    y_tile = y + m[:, None] * stride_ym + n[None, :] * stride_yn
    tl.store(y_tile, total.to(y.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit(do_not_specialize=["low", "high"])
def outer_kernel(
    u, v, out, shares, low, high, M, K, R, piece,
    stride_um, stride_ur, stride_vm, stride_vk, stride_op, stride_or, stride_ok,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):
    """out[p] = u[p-th piece of M]ᵀ v[p-th piece of M], v with dropout if `low` is given. Program (block of K, block
    of R, p).

    Computed as vᵀ u, transposed: the wide side K fills the 64 rows that a Hopper matrix instruction has.
    """
    k = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    p = tl.program_id(2).to(tl.int64)
    m = p * piece + tl.arange(0, BLOCK_M)
    v_tile = v + k[:, None] * stride_vk + m[None, :] * stride_vm
    u_tile = u + m[:, None] * stride_um + r[None, :] * stride_ur
    last = p * piece + piece
    last = tl.where(last < M, last, M)
    if low is not None:
        entries = _word_of_entries(k, low, high)
    total = tl.full((BLOCK_K, BLOCK_R), 0.0, tl.float32)
    for start in range(p * piece, last, BLOCK_M):
        inside = tl.arange(0, BLOCK_M) < last - start
        v_values = tl.load(v_tile, mask=(k[:, None] < K) & inside[None, :], other=0.0)
        if low is not None:
            token = start + tl.arange(0, BLOCK_M)
            share = tl.load(shares + token, mask=inside, other=0.0)
            words = _word_of_tokens(token, low, high)[None, :] ^ entries[:, None]
            v_values = tl.where(_dropped(words, share[None, :]), 0.0, v_values).to(v.dtype.element_ty)
        u_values = tl.load(u_tile, mask=inside[:, None] & (r[None, :] < R), other=0.0)
        total = tl.dot(v_values, u_values, total, input_precision=PRECISION)
        v_tile += BLOCK_M * stride_vm
        u_tile += BLOCK_M * stride_um
    place = out + p * stride_op + r[None, :] * stride_or + k[:, None] * stride_ok
    tl.store(place, total, mask=(k[:, None] < K) & (r[None, :] < R))


@triton.jit
def down_outer_kernel(
    dy, b, s, ds, db, M, N, R, piece,
    stride_ym, stride_yn, stride_bn, stride_br, stride_sm, stride_sr,
    stride_dsp, stride_dsm, stride_dsr, stride_dbp, stride_dbn, stride_dbr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, TURNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """ds[p] = dy[:, p-th piece of N] b and db[i] = dy[i-th block of M]ᵀ s, out of one read of dy.

    Program (i, block of R, p). Both are partial sums in fp32: ds over the pieces, db over the blocks.
    TURNED takes db as (sᵀ dy)ᵀ, so that both products read dy's tile in one layout: before Hopper the tile is
    copied asynchronously only then. Hopper's instruction reads it both ways, and wants the wide side first.
    """
    i = tl.program_id(0).to(tl.int64)
    m = i * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    p = tl.program_id(2).to(tl.int64)
    n = p * piece + tl.arange(0, BLOCK_N)
    s_tile = s + m[:, None] * stride_sm + r[None, :] * stride_sr
    s_values = tl.load(s_tile, mask=(m[:, None] < M) & (r[None, :] < R), other=0.0)
    y_tile = dy + m[:, None] * stride_ym + n[None, :] * stride_yn
    b_tile = b + n[:, None] * stride_bn + r[None, :] * stride_br
    db_tile = db + i * stride_dbp + n[:, None] * stride_dbn + r[None, :] * stride_dbr
    last = p * piece + piece
    last = tl.where(last < N, last, N)
    total = tl.full((BLOCK_M, BLOCK_R), 0.0, tl.float32)
    for start in range(p * piece, last, BLOCK_N):
        inside = tl.arange(0, BLOCK_N) < last - start
        there = inside[:, None] & (r[None, :] < R)
        y_values = tl.load(y_tile, mask=(m[:, None] < M) & inside[None, :], other=0.0)
        b_values = tl.load(b_tile, mask=there, other=0.0)
        total = tl.dot(y_values, b_values, total, input_precision=PRECISION)
        if TURNED:
            product = tl.trans(tl.dot(tl.trans(s_values), y_values, input_precision=PRECISION))
        else:
            product = tl.dot(tl.trans(y_values), s_values, input_precision=PRECISION)
        tl.store(db_tile, product, mask=there)
        y_tile += BLOCK_N * stride_yn
        b_tile += BLOCK_N * stride_bn
        db_tile += BLOCK_N * stride_dbn
    place = ds + p * stride_dsp + m[:, None] * stride_dsm + r[None, :] * stride_dsr
    tl.store(place, total, mask=(m[:, None] < M) & (r[None, :] < R))


Words = tuple[int, int]
"""The low and the high word of a dropout's seed, signed 32-bit numbers."""


def down(
    x: Tensor, a: Tensor, scales: Tensor, columns: Tensor | None = None, rows: Tensor | None = None,
    shares: Tensor | None = None, words: Words | None = None,
) -> Tensor:
    """s = (x aᵀ) ⊙ m: x (M, K), a (R, K) → (M, R) in x's dtype. dS = (dY b) ⊙ m is the same with a = bᵀ.

    scales (R,) fp32; columns (R,) and rows (M,) int32; shares (M,) fp32, of dropout, which x has if `words` are given;
    contiguous.
    """
    (m, k), r = x.shape, a.shape[0]
    s = torch.empty((m, r), dtype=x.dtype, device=x.device)
    if m == 0:
        return s
    tile = tiles.choose("down", x, r)
    grid = triton.cdiv(m, tile["BLOCK_M"]), triton.cdiv(r, tile["BLOCK_R"])
    pieces, length = sums.pieces(grid[0] * grid[1], k, tile["BLOCK_K"])
    sizes = (shares, *(words or (None, None)), m, k, r, length, *x.stride(), *a.stride())
    if pieces == 1:
        common.launch(down_kernel, (*grid, 1), x, a, s, scales, columns, rows, *sizes, 0, *s.stride(), **tile)
        return s
    partials = torch.empty((pieces, m, r), dtype=torch.float32, device=x.device)
    strides = partials.stride()
    common.launch(down_kernel, (*grid, pieces), x, a, partials, None, None, None, *sizes, *strides, **tile)
    return sums.add_up(partials, s, scales, columns, rows, shares)


def linear(x: Tensor, w: Tensor, bias: Tensor | None, s: Tensor, b: Tensor) -> Tensor:
    """y = x wᵀ + s bᵀ + bias: x (M, K), w (N, K), bias (N,) | None, s (M, R), b (N, R) → (M, N) in x's dtype.

    dX = dY w + dS a is the same with w = wᵀ and b = aᵀ.
    """
    return _linear(x, w, bias, s, b, None, None, tiles.choose("linear", x, b.shape[1]))


def up(s: Tensor, b: Tensor, shares: Tensor, words: Words) -> Tensor:
    """s bᵀ with dropout, which dX begins with: s (M, R), b (N, R), shares (M,) fp32 → (M, N) in s's dtype."""
    # The epilogue of no product; a small tile, since nothing is read again for it.
    none = s[:, :0]
    return _linear(none, b[:, :0], None, s, b, shares, words, tiles.choose("linear", none[:1], b.shape[1]))


def _linear(
    x: Tensor, w: Tensor, bias: Tensor | None, s: Tensor, b: Tensor, shares: Tensor | None, words: Words | None,
    tile: dict[str, int | bool | str],
) -> Tensor:
    (m, k), (n, r) = x.shape, b.shape
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if m == 0:
        return y
    grid = (triton.cdiv(m, tile["BLOCK_M"]) * triton.cdiv(n, tile["BLOCK_N"]),)
    strides = (*x.stride(), *w.stride(), *s.stride(), *b.stride(), *y.stride())
    drop = shares, *(words or (None, None))
    common.launch(linear_kernel, grid, x, w, bias, s, b, y, *drop, m, n, k, r, *strides, **tile)
    return y


def outer(u: Tensor, v: Tensor, shares: Tensor | None = None, words: Words | None = None) -> Tensor:
    """g = uᵀ v: u (M, R), v (M, K) → (R, K) fp32. dA = dSᵀ x, and dBᵀ = sᵀ dY.

    shares (M,) fp32 and words: of the dropout that v has.
    """
    (m, r), k = u.shape, v.shape[1]
    g = torch.empty((r, k), dtype=torch.float32, device=v.device)
    if m == 0:
        return g.zero_()
    tile = tiles.choose("outer", v, r)
    grid = triton.cdiv(k, tile["BLOCK_K"]), triton.cdiv(r, tile["BLOCK_R"])
    pieces, length = sums.pieces(grid[0] * grid[1], m, tile["BLOCK_M"])
    partials = g if pieces == 1 else torch.empty((pieces, r, k), dtype=torch.float32, device=v.device)
    drop = (None, None, None) if words is None else (shares, *words)
    strides = (*u.stride(), *v.stride(), *partials.expand(pieces, r, k).stride())
    common.launch(outer_kernel, (*grid, pieces), u, v, partials, *drop, m, k, r, length, *strides, **tile)
    return g if pieces == 1 else sums.add_up(partials, g)


def down_outer(
    dy: Tensor, b: Tensor, s: Tensor, scales: Tensor, columns: Tensor | None = None,
    rows: Tensor | None = None, shares: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """dS = (dY b) ⊙ m and dB = dYᵀ s, out of one read of dY where that is the cheaper way.

    dy (M, N), b (N, R), s (M, R), shares (M,): of dropout, in m → dS (M, R) in dy's dtype, dB (N, R) fp32.
    Scratch: at most a quarter of dy's bytes and a little (`tiles.one_read`).
    """
    (m, n), r = dy.shape, b.shape[1]
    tile = tiles.choose("down_outer", dy, r)
    if m == 0 or not tiles.one_read(tile["BLOCK_M"], r, dy.element_size()):
        return down(dy, b.t(), scales, columns, rows, shares), outer(s, dy).t().contiguous()
    blocks, blocks_r = triton.cdiv(m, tile["BLOCK_M"]), triton.cdiv(r, tile["BLOCK_R"])
    pieces, length = sums.pieces(blocks * blocks_r, n, tile["BLOCK_N"])
    ds_partials = torch.empty((pieces, m, r), dtype=torch.float32, device=dy.device)
    if tile["TURNED"]:  # as the products come out: along N
        db_partials = torch.empty((blocks, r, n), dtype=torch.float32, device=dy.device).transpose(1, 2)
    else:
        db_partials = torch.empty((blocks, n, r), dtype=torch.float32, device=dy.device)
    strides = (*dy.stride(), *b.stride(), *s.stride(), *ds_partials.stride(), *db_partials.stride())
    common.launch(
        down_outer_kernel, (blocks, blocks_r, pieces), dy, b, s, ds_partials, db_partials, m, n, r, length,
        *strides, **tile,
    )
    ds = torch.empty((m, r), dtype=dy.dtype, device=dy.device)
    db = torch.empty((n, r), dtype=torch.float32, device=dy.device)
    return sums.add_up(ds_partials, ds, scales, columns, rows, shares), sums.add_up(db_partials, db)
