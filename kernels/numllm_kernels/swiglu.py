"""Kernels of SwiGLU, forward and backward.

    y = round(silu(gate)) ⊙ up          silu(z) = z σ(z), σ(z) = 1 / (1 + exp(−z))
    d(up) = dY ⊙ round(silu(gate))      d(gate) = round(dY ⊙ up) σ (1 + gate (1 − σ))

round() is to the inputs' dtype: the roundings of torch's own operations. fp32, fp16 or bf16 in, fp32 inside; each
element is read once and written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common

_BLOCK, _WARPS = 2048, 4


@triton.jit
def _place(N, BLOCK: tl.constexpr):
    """(row, elements of the row) of this program."""
    blocks = (N + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    return row, (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def sigmoid(z):
    """Without overflow: exp of nothing above 0."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def swiglu_kernel(gate, up, y, N, stride_gate, stride_up, stride_y, BLOCK: tl.constexpr):
    """Program: a block of a row."""
    row, n = _place(N, BLOCK)
    g = tl.load(gate + row * stride_gate + n, mask=n < N, other=0.0).to(tl.float32)
    u = tl.load(up + row * stride_up + n, mask=n < N, other=0.0).to(tl.float32)
    s = (g * sigmoid(g)).to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + row * stride_y + n, (s * u).to(y.dtype.element_ty), mask=n < N)


@triton.jit
def swiglu_backward_kernel(
    dy, gate, up, dgate, dup, N, stride_dy, stride_gate, stride_up, stride_dgate, stride_dup, BLOCK: tl.constexpr
):
    """Program: a block of a row. dgate and dup may be gate and up: an element is read before it is written."""
    row, n = _place(N, BLOCK)
    g = tl.load(gate + row * stride_gate + n, mask=n < N, other=0.0).to(tl.float32)
    u = tl.load(up + row * stride_up + n, mask=n < N, other=0.0).to(tl.float32)
    d = tl.load(dy + row * stride_dy + n, mask=n < N, other=0.0).to(tl.float32)
    dtype: tl.constexpr = dgate.dtype.element_ty
    sigma = sigmoid(g)
    s = (g * sigma).to(dtype).to(tl.float32)
    ds = (d * u).to(dtype).to(tl.float32)
    tl.store(dgate + row * stride_dgate + n, (ds * sigma * (1.0 + g * (1.0 - sigma))).to(dtype), mask=n < N)
    tl.store(dup + row * stride_dup + n, (d * s).to(dtype), mask=n < N)


def _as_lines(*tensors: Tensor) -> list[Tensor]:
    """Rows of the tensors, one long row where none has gaps."""
    flat = [common.as_rows(tensor) for tensor in tensors]
    return [part.view(1, -1) for part in flat] if all(part.is_contiguous() for part in flat) else flat


def _grid(like: Tensor) -> tuple[int]:
    return (like.shape[0] * triton.cdiv(like.shape[1], _BLOCK),)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """y: gate, up (..., I) in one dtype → (..., I)."""
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if y.numel():
        lines = _as_lines(gate, up, y)
        common.launch(
            swiglu_kernel, _grid(lines[0]), *lines, lines[0].shape[1], *(line.stride(0) for line in lines),
            BLOCK=_BLOCK, num_warps=_WARPS,
        )
    return y


def swiglu_backward(
    dy: Tensor, gate: Tensor, up: Tensor, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """(d(gate), d(up)): dy, gate, up (..., I) → twice (..., I).

    out: where they are written, packed memory or gate and up themselves, for callers who need these no more.
    """
    if out is None:
        out = tuple(torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2))
    if gate.numel():
        lines = _as_lines(dy, gate, up, *out)
        for tensor, line in zip(out, lines[3:], strict=True):
            if tensor.data_ptr() != line.data_ptr():
                raise ValueError("out must be rows with neighbours in memory along the last dimension")
        common.launch(
            swiglu_backward_kernel, _grid(lines[0]), *lines, lines[0].shape[1], *(line.stride(0) for line in lines),
            BLOCK=_BLOCK, num_warps=_WARPS,
        )
    return out
