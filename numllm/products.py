"""Products with a frozen weight in its own dtype, on a GPU or a CPU: the big one, the thin ones, the head's, and those
of a few rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
AVX512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""Whether torch uses AVX-512 here."""
WIDE_BLOCK = 16 * 2**20
"""Elements of a 16-bit weight that the CPU path widens to fp32 at a time: 64 MiB."""
_FEW_TOKENS = 8
"""Below this many tokens, reading a weight costs more than multiplying with it."""
_TURNED = {
    (True, torch.float32): range(8, 33), (True, torch.bfloat16): range(2, 65), (False, torch.float32): range(2, 9),
}
"""(AVX512, dtype) → the numbers of rows that are quicker as (w xᵀ)ᵀ than as x wᵀ. The library
then copies w once, in its own order, and goes along it with all rows; the other way round it reads w anew for every few
of them, or copies it more slowly. Up to half the time goes. Measured on one processor of each kind, with torch 2.13."""
_MOST_TURNED = max(max(rows) for rows in _TURNED.values())


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x wᵀ + bias: x (..., K), w (N, K) → (..., N), in one dtype.

    A few rows on a CPU, which decoding has, go the way that reads w best: as w x where it is one row in bf16, as
    (w xᵀ)ᵀ for the numbers of `_TURNED`.
    """
    rows = x.numel() // max(1, x.shape[-1])
    if x.is_cuda or rows > _MOST_TURNED or (x.requires_grad and torch.is_grad_enabled()):
        return F.linear(x, w, bias)
    if rows == 1 and AVX512 and x.dtype == torch.bfloat16:
        y = torch.mv(w, x.reshape(-1))
    elif rows in _TURNED.get((AVX512, x.dtype), ()) and (AVX512 or w.shape[0] >= w.shape[1]):
        y = torch.mm(w, x.reshape(rows, -1).T).T.contiguous()
    else:
        return F.linear(x, w, bias)
    return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1)


Parts = Sequence[tuple[slice, slice]]
"""Rows and columns of the blocks of s (M, R) outside of which it is 0: each row in one block, perhaps of no columns."""


def low_rank(s: Tensor, b: Tensor, bias: Tensor | None = None, parts: Parts | None = None) -> Tensor:
    """s b + bias: s (M, R), b (R, N), bias (N,) → (M, N), which `add_products` then adds the big product onto.

    parts: of s; None: it is dense.
    """
    y = s.new_empty(len(s), b.shape[1])
    for rows, columns in parts or [(slice(None), slice(None))]:
        if bias is None:
            torch.mm(s[rows, columns], b[columns], out=y[rows])
        else:
            torch.addmm(bias.to(s.dtype), s[rows, columns], b[columns], out=y[rows])
    return y


def add_products(y: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """y + Σ x w, in place, for pairs of x (M, K) in y's dtype and w (K, N) in its own; y (M, N).

    The thin product first, then the big ones added onto it in place: the library reads what is there while it
    multiplies, in fp32 before the only rounding, where the other order would read and write y once more.
    """
    for x, w in pairs:
        if w.dtype == x.dtype:
            y.addmm_(x, w)
            continue
        for rows, columns in blocks(w):
            y[:, columns].addmm_(x[:, rows], w[rows, columns].to(x.dtype))
    return y


def blocks(w: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cuts w (K, N) or (N, K)ᵀ along its outer side in memory, in blocks of about WIDE_BLOCK elements."""
    side = 0 if w.stride(0) >= w.stride(1) else 1
    step = max(1, WIDE_BLOCK // max(1, w.shape[1 - side]))
    for first in range(0, w.shape[side], step):
        cut = slice(first, first + step)
        yield (cut, slice(None)) if side == 0 else (slice(None), cut)


def outer(u: Tensor, v: Tensor) -> Tensor:
    """uᵀ v: u (M, R), v (M, K) → (R, K), in fp32 for 16 bits on a GPU and in the inputs' dtype elsewhere."""
    if v.is_cuda and v.dtype in HALVES:
        return torch.mm(u.T, v, out_dtype=torch.float32)
    return u.T @ v


def logits(x: Tensor, w: Tensor, out: Tensor) -> Tensor:
    """out = x wᵀ in out's dtype, fp32 or fp64: x (S, D), w (V, D) → (S, V)."""
    if x.dtype == out.dtype:
        return torch.mm(x, w.T, out=out)
    if x.is_cuda:
        return torch.mm(x, w.T, out_dtype=out.dtype, out=out)
    if product_dtype(w, len(x)) == w.dtype:
        return out.copy_(x @ w.T)
    wide = x.to(out.dtype)
    for rows, _ in blocks(w):
        torch.mm(wide, w[rows].to(out.dtype).T, out=out[:, rows])
    return out


def times_weight(scores: Tensor, w: Tensor) -> Tensor:
    """scores w: scores (S, V) in fp32 or fp64, w (V, D) → (S, D)."""
    if product_dtype(w, len(scores)) == w.dtype:
        return scores.to(w.dtype) @ w
    product = scores.new_zeros(len(scores), w.shape[1])
    for rows, _ in blocks(w):
        product.addmm_(scores[:, rows], w[rows].to(scores.dtype))
    return product


def product_dtype(tensor: Tensor, tokens: int) -> torch.dtype:
    """The dtype to multiply in: the tensor's, or fp32 for 16 bits on a CPU without instructions for them.

    There torch's 16-bit products are plain loops, many times slower than widening to fp32 first. For a few
    tokens, where reading the weight is the cost, they are kept.
    """
    if tensor.is_cuda or tensor.dtype not in HALVES or tokens < _FEW_TOKENS:
        return tensor.dtype
    if tensor.dtype == torch.bfloat16 and AVX512:
        return tensor.dtype
    return torch.float32
