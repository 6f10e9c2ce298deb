"""Kernel of the cross-entropy: from a row of logits its loss, and the gradient of the logits in their place.

    lse = log Σⱼ exp(zⱼ)        loss = lse − z[label] + β lse²        dzⱼ = softmax(z)ⱼ (1 + 2 β lse) − [j = label]

A row whose label is `ignored` loses 0 and has gradient 0; a label that is no column makes the loss NaN. fp32, fp16 or
bf16 logits, fp32 inside. A row is read twice: the second time from its end, where the caches still hold it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import common

_BLOCK = 8192
"""Logits that a program takes up at a time, twice that in a turn."""


@triton.jit
def _line(line, j, V, width):
    """z at the columns j, −∞ from V on: the columns from there to width are room."""
    z = tl.load(line + j, mask=j < width, other=float("-inf")).to(tl.float32)
    return tl.where(j < V, z, float("-inf"))


@triton.jit
def cross_entropy_kernel(
    logits, labels, losses, V, width, stride, beta, ignored, FORMS_GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):
    """Program: a row. Each lane keeps a maximum and a sum of its own, which are brought together once."""
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    label = tl.load(labels + row)
    picked = tl.load(line + label, mask=(label >= 0) & (label < V), other=float("nan")).to(tl.float32)
    lane = tl.arange(0, BLOCK)
    high = tl.full((BLOCK,), -3.0e38, tl.float32)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, V, 2 * BLOCK):
        first = _line(line, start + lane, V, width)
        second = _line(line, start + BLOCK + lane, V, width)
        higher = tl.maximum(high, tl.maximum(first, second))
        total = total * tl.exp(high - higher) + tl.exp(first - higher) + tl.exp(second - higher)
        high = higher
    most = tl.reduce(high, 0, common.larger)
    lse = most + tl.log(tl.reduce(total * tl.exp(high - most), 0, common.plus))
    counts = label != ignored
    tl.store(losses + row, tl.where(counts, lse - picked + beta * lse * lse, 0.0))
    if FORMS_GRADIENT:
        tl.debug_barrier()  # z[label] has been read by all before anyone writes
        share = tl.where(counts, 1.0 + 2.0 * beta * lse, 0.0)
        one = tl.where(counts, 1.0, 0.0)
        blocks = (V + BLOCK - 1) // BLOCK
        for back in range(0, blocks):
            j = (blocks - 1 - back) * BLOCK + lane
            dz = tl.exp(_line(line, j, V, width) - lse) * share - tl.where(j == label, one, 0.0)
            tl.store(line + j, dz.to(logits.dtype.element_ty), mask=j < width)


def cross_entropy(
    logits: Tensor, labels: Tensor, losses: Tensor, *, columns: int | None = None, ignored: int = -100,
    beta: float = 0.0, gradient: bool = True,
) -> None:
    """Fills losses (S,) fp32, and with `gradient` writes dz over logits (S, W), whose rows may lie apart.

    labels (S,) int64, contiguous. columns: V, where the columns from V to W are room, of any content: with W a multiple
    of 16 elements every access is a wide one.
    """
    count, width = logits.shape
    if not count:
        return
    size = width if columns is None else columns
    block = min(_BLOCK, common.power_of_two(size))
    warps = max(1, min(block // 256, common.most_warps()))
    common.launch(
        cross_entropy_kernel, (count,), logits, labels, losses, size, width, logits.stride(0), beta, ignored,
        FORMS_GRADIENT=gradient, BLOCK=block, num_warps=warps,
    )
