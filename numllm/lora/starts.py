"""Where the factors of an adapter begin.

| start | A (r, K) | B (N, r) | frozen beside them | source |
|---|---|---|---|---|
| default | U(−1/√K, 1/√K) | 0 | | PEFT's reset, arXiv 2106.09685 |
| embedding | N(0, 1) | 0 | | PEFT's of an embedding, whose B that is |
| gaussian | N(0, 1/r²) | 0 | | PEFT's "gaussian" |
| orthogonal | X Q₁ / 10 | Q₂ᵀ Y / 10 | | PEFT's "orthogonal"; rows of one orthogonal Q: B A = 0 |
| pissa | √(Sᵣ/s) Vᵣᵀ | Uᵣ √(Sᵣ/s) | A, B at the start | PiSSA, arXiv 2404.02948: W = U S Vᵀ |
| olora | Rᵣ | Qᵣ | A, B at the start | OLoRA, arXiv 2406.01775: W = Q R |

PiSSA and OLoRA are defined on W − s B₀ A₀. Here W stays as it is, since other adapters sit on it too, and − s B₀ A₀ is
computed beside s B A as further columns that are not trained; saved, they are part of the adapter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def gathered(weight: Tensor) -> Tensor:
    """A weight whole, where its shards lie with several processes, all of which must ask for it."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def begin(start: str, w: Tensor, rank: int, scale: float, generator: torch.Generator) -> tuple[Pair, Pair | None]:
    """((A, B), (A₀, B₀) or None) of an adapter of scale s on w (N, K), fp32, on the CPU.

    generator: a CPU generator; the draws depend on it alone. PiSSA and OLoRA draw nothing: they depend on w.
    ValueError when the rank is more than N and K allow.
    """
    n, k = w.shape
    if start in ("pissa", "olora"):
        if rank > min(n, k):
            raise ValueError(f"the start {start} has at most rank {min(n, k)} on a linear of {n} × {k}, got {rank}")
        # fp64 before the rounding to fp32: the library's last bits depend on where in memory w lies.
        exact = gathered(w).to("cpu", torch.float64, copy=True)
        found = _pissa(exact, rank, scale) if start == "pissa" else _olora(exact, rank)
        a, b = (part.float() for part in found)
        return (a, b), (a.clone(), b.clone())
    if rank > max(n, k):  # a typing slip, that would take all memory before anything else is found wrong
        raise ValueError(f"a rank is {max(n, k)} at most on a weight of {n} × {k}, got {rank}")
    if start == "orthogonal":
        q = torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q
        a = torch.randn(k, rank // 2, generator=generator) @ q[0::2] / 10
        b = torch.randn(n, rank // 2, generator=generator) @ q[1::2] / 10
        return (a.T.contiguous(), b), None
    if start == "embedding":
        a = torch.randn(rank, k, generator=generator)
    elif start == "gaussian":
        a = torch.randn(rank, k, generator=generator) / rank
    else:
        a = (torch.rand(rank, k, generator=generator) * 2 - 1) / math.sqrt(k)
    return (a, torch.zeros(n, rank)), None


def _pissa(w: Tensor, rank: int, scale: float) -> Pair:
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    u, root, vt = u[:, :rank], (s[:rank] / abs(scale)).sqrt(), vt[:rank]
    sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()  # the largest entry of each of B's columns is positive
    return vt * (root * sign[0])[:, None], u * root * sign * math.copysign(1, scale)


def _olora(w: Tensor, rank: int) -> Pair:
    q, r = torch.linalg.qr(w)
    return r[:rank], q[:, :rank]
