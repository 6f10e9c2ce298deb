"""Kernel of the rotary position embedding: q and k of a token in one program.

    y₁ = round(x₁ c) − round(x₂ s)        y₂ = round(x₂ c) + round(x₁ s)

for each pair (x₁, x₂) of a head's first R features: (xᵢ, xᵢ₊ᴿ⸝₂), or with neighbours (x₂ᵢ, x₂ᵢ₊₁). c and s are the
cosine and the sine of the pair's angle; features from R on are copied. Backward is the rotation by −s. round() is to
the inputs' dtype, as in torch. fp32, fp16 or bf16 in, fp32 inside; each element is read once and written once, and a
token's c and s serve all of its heads.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common

_HEADS = 32
"""Heads that a program turns at a time."""


@triton.jit
def _turned(x1, x2, c, s, dtype: tl.constexpr):
    first = (x1 * c).to(dtype).to(tl.float32) - (x2 * s).to(dtype).to(tl.float32)
    second = (x2 * c).to(dtype).to(tl.float32) + (x1 * s).to(dtype).to(tl.float32)
    return first.to(dtype), second.to(dtype)


@triton.jit
def _turn_heads(
    x, y, c, s, heads, stride_h, SIZE: tl.constexpr, PAIRS: tl.constexpr, NEIGHBOURS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_REST: tl.constexpr,
):
    """The heads of one token; y's heads are SIZE apart."""
    dtype: tl.constexpr = y.dtype.element_ty
    for first in range(0, heads, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H).to(tl.int64)[:, None]
        if NEIGHBOURS:
            e = tl.arange(0, 2 * BLOCK_P)[None, :]
            there = (h < heads) & (e < 2 * PAIRS)
            values = tl.load(x + h * stride_h + e, mask=there, other=0.0).to(tl.float32)
            x1, x2 = tl.split(tl.reshape(values, (BLOCK_H, BLOCK_P, 2)))
            y1, y2 = _turned(x1, x2, c[None, :], s[None, :], dtype)
            tl.store(y + h * SIZE + e, tl.reshape(tl.join(y1, y2), (BLOCK_H, 2 * BLOCK_P)), mask=there)
        else:
            e = tl.arange(0, BLOCK_P)[None, :]
            there = (h < heads) & (e < PAIRS)
            x1 = tl.load(x + h * stride_h + e, mask=there, other=0.0).to(tl.float32)
            x2 = tl.load(x + h * stride_h + PAIRS + e, mask=there, other=0.0).to(tl.float32)
            y1, y2 = _turned(x1, x2, c[None, :], s[None, :], dtype)
            tl.store(y + h * SIZE + e, y1, mask=there)
            tl.store(y + h * SIZE + PAIRS + e, y2, mask=there)
        if SIZE > 2 * PAIRS:
            e = 2 * PAIRS + tl.arange(0, BLOCK_REST)[None, :]
            there = (h < heads) & (e < SIZE)
            tl.store(y + h * SIZE + e, tl.load(x + h * stride_h + e, mask=there), mask=there)


@triton.jit
def rotate_kernel(
    q, k, cos, sin, q_out, k_out, T, heads_q, heads_k,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_cb, stride_ct, stride_sb, stride_st,
    SIZE: tl.constexpr, PAIRS: tl.constexpr, NEIGHBOURS: tl.constexpr, BACKWARD: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_REST: tl.constexpr,
):
    """Program: a token. The results are packed, (B, T, heads, SIZE)."""
    token = tl.program_id(0).to(tl.int64)
    b = token // T
    t = token % T
    p = tl.arange(0, BLOCK_P)
    e = 2 * p + 1 if NEIGHBOURS else PAIRS + p  # of a pair's second feature, where sin has its own sign
    c = tl.load(cos + b * stride_cb + t * stride_ct + e, mask=p < PAIRS, other=0.0).to(tl.float32)
    s = tl.load(sin + b * stride_sb + t * stride_st + e, mask=p < PAIRS, other=0.0).to(tl.float32)
    if BACKWARD:
        s = -s
    _turn_heads(
        q + b * stride_qb + t * stride_qt, q_out + token * heads_q * SIZE, c, s, heads_q, stride_qh,
        SIZE, PAIRS, NEIGHBOURS, BLOCK_Q, BLOCK_P, BLOCK_REST,
    )
    _turn_heads(
        k + b * stride_kb + t * stride_kt, k_out + token * heads_k * SIZE, c, s, heads_k, stride_kh,
        SIZE, PAIRS, NEIGHBOURS, BLOCK_K, BLOCK_P, BLOCK_REST,
    )


def _packed_features(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, neighbours: bool = False, backward: bool = False
) -> tuple[Tensor, Tensor]:
    """q (B, H, T, E), k (B, G, T, E) turned by cos, sin (B or 1, 1, T, R ≤ E) → (B, H, T, E), (B, G, T, E).

    cos and sin hold each pair's value at both of its features, sin with the other sign at the first. backward: the
    gradients of q and k from those of the results. The results are views of packed (B, T, H or G, E), the layout in
    which attention reads a token.
    """
    batch, heads_q, count, size = q.shape
    heads_k, pairs = k.shape[1], cos.shape[-1] // 2
    out = tuple(
        torch.empty((batch, count, heads, size), dtype=q.dtype, device=q.device) for heads in (heads_q, heads_k)
    )
    if batch * count:
        q, k, cos, sin = map(_packed_features, (q, k, cos, sin))

        def strides(x: Tensor) -> tuple[int, int]:
            return (x.stride(0) if x.shape[0] > 1 else 0), x.stride(2)

        settings: dict[str, Any] = {
            "SIZE": size, "PAIRS": pairs, "NEIGHBOURS": neighbours, "BACKWARD": backward,
            "BLOCK_P": common.power_of_two(pairs), "BLOCK_REST": common.power_of_two(max(1, size - 2 * pairs)),
            "BLOCK_Q": min(_HEADS, common.power_of_two(heads_q)), "BLOCK_K": min(_HEADS, common.power_of_two(heads_k)),
        }
        common.launch(
            rotate_kernel, (batch * count,), q, k, cos, sin, *out, count, heads_q, heads_k, *q.stride()[:3],
            *k.stride()[:3], *strides(cos), *strides(sin), **settings, num_warps=4,
        )
    return out[0].transpose(1, 2), out[1].transpose(1, 2)
