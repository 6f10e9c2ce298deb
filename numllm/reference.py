"""The LoRA linear, its gradients written out, the loss, norm and SwiGLU in plain torch: what faster ways must give.

    s = (x aᵀ) ⊙ m          y = x wᵀ + s bᵀ + bias
    dS = (dY b) ⊙ m         dX = dY w + dS a         dA = dSᵀ x        dB = dYᵀ s        (w is frozen: no dW)

With dropout, m holds scale / (1 − p) where p is the token's share, and s and dA take x ⊙ z, dX takes (dS a) ⊙ z,
where z (M, K) is 0 for a share p of the entries and 1 for the others.

Several adapters are one: their factors are stacked, a (R, K) and b (N, R) with R the sum of the ranks, and m
(M, R) holds each token's scale in the columns of its adapter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def column_scales(
    x: Tensor, scales: Tensor, columns: Tensor | None = None, rows: Tensor | None = None,
    shares: Tensor | None = None,
) -> Tensor:
    """m of the formulas: m[t, c] = scales[c] / (1 − shares[t]) where rows is None or rows[t] == columns[c], else 0.

    x (M, K); scales (R,): alpha / rank of each column's adapter; columns (R,) int32: the adapter's index of
    each column; rows (M,) int32: the adapter's index of each token, −1 for none; shares (M,): of dropout, 0 for None.
    → (M, R) in x's dtype.
    """
    everywhere = scales.to(x.dtype).expand(x.shape[0], -1)
    if shares is not None:
        everywhere = everywhere / (1 - shares.to(x.dtype))[:, None]
    if rows is None:
        return everywhere
    return torch.where(rows[:, None] == columns[None, :], everywhere, 0)


def dropped(m: int, k: int, shares: Tensor, seed: int) -> Tensor:
    """1 − z of the formulas, (m, k) bool: entry (t, j) is dropped where u(t, j) < shares[t].

    u is counter-based: the same for the same seed, whatever computes it. With mix(h) the 32-bit words
    h ← (h ⊕ h≫16) · 0x7FEB352D, h ← (h ⊕ h≫15) · 0x846CA68B (after Wellons' lowbias32), and low and high the seed's,

        u(t, j) = 2⁻²⁴ ⌊mix(mix(mix(t ⊕ low) ⊕ high) ⊕ mix(mix(¬j ⊕ high) ⊕ low)) / 2⁸⌋
    """

    def mix(h: Tensor) -> Tensor:
        h = ((h ^ (h >> 16)) * 0x7FEB352D) % 2**32
        return ((h ^ (h >> 15)) * 0x846CA68B) % 2**32

    low, high = seed % 2**32, (seed >> 32) % 2**32
    token = mix(mix(torch.arange(m) ^ low) ^ high)
    entry = mix(mix((2**32 - 1 - torch.arange(k)) ^ high) ^ low)
    return (mix(token[:, None] ^ entry) >> 8).float().cpu() / 2**24 < shares.cpu()[:, None]


def down(
    x: Tensor, a: Tensor, scales: Tensor, columns: Tensor | None = None, rows: Tensor | None = None,
    shares: Tensor | None = None, z: Tensor | float = 1.0,
) -> Tensor:
    """s = ((x ⊙ z) aᵀ) ⊙ m: x (M, K), a (R, K) → (M, R); the other arguments are those of `lora_linear`."""
    return ((x * z) @ a.T) * column_scales(x, scales, columns, rows, shares)


def lora_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scales: Tensor,
    columns: Tensor | None = None, rows: Tensor | None = None, shares: Tensor | None = None, z: Tensor | float = 1.0,
) -> Tensor:
    """y = x wᵀ + bias + ((x aᵀ) ⊙ m) bᵀ.

    x (M, K), w (N, K), bias (N,) | None, a (R, K), b (N, R), in one dtype; scales, columns, rows, shares as in
    `column_scales`; z (M, K) in the dtype, with dropout. → (M, N).
    """
    y = x @ w.T + down(x, a, scales, columns, rows, shares, z) @ b.T
    return y if bias is None else y + bias


def lora_linear_backward(
    dy: Tensor, x: Tensor, w: Tensor, a: Tensor, b: Tensor, scales: Tensor,
    columns: Tensor | None = None, rows: Tensor | None = None, shares: Tensor | None = None, z: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dX (M, K), dA (R, K), dB (N, R)) of `lora_linear` for the gradient dy (M, N) of its output."""
    s = down(x, a, scales, columns, rows, shares, z)
    ds = (dy @ b) * column_scales(x, scales, columns, rows, shares)
    return dy @ w + (ds @ a) * z, ds.T @ (x * z), dy.T @ s


def token_losses(x: Tensor, w: Tensor, labels: Tensor) -> Tensor:
    """losses[i] = −log softmax(w x[i])[labels[i]].

    x (S, D), w (V, D), labels (S,) int64 → (S,). The logits and the softmax are taken in fp32, in fp64 for fp64
    inputs.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    scores = torch.log_softmax(x.to(wide) @ w.to(wide).T, dim=-1)
    return -scores.gather(1, labels[:, None])[:, 0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = weight ⊙ x / sqrt(mean(x²) + eps) over the last dimension (arXiv 1910.07467).

    In fp32, in fp64 for fp64 inputs, up to the product with weight. x (..., D), weight (D,) → (..., D) in x's dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) ⊙ up: gate, up (..., I) → (..., I) (arXiv 2002.05202)."""
    return F.silu(gate) * up
