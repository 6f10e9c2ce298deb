"""Which entries of a LoRA linear's input its adapters do not see: `reference.dropped`, in torch's 32-bit words.

The kernels have the same function of token, entry and seed, so a mask is never stored: backward makes it again, and
it is the same on every device and in every implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - 2**32
_BLOCK = 2**16
"""Entries worked on at a time on the CPU: their words stay in its cache."""


def words(seed: Tensor) -> tuple[int, int]:
    """A seed's low and high word, signed 32-bit numbers."""
    low, high = int(seed) & (2**32 - 1), int(seed) >> 32 & (2**32 - 1)
    return tuple(word - 2**32 if word >= 2**31 else word for word in (low, high))


def without_dropped(x: Tensor, shares: Tensor, seed: Tensor) -> Tensor:
    """x (M, K) with 0 where `reference.dropped` says so; shares (M,) fp32, seed () int64."""
    (m, k), (low, high) = x.shape, words(seed)
    # Copied at once: masking a copy by blocks writes no mask of x's size.
    y = x.clone(memory_format=torch.contiguous_format)
    token = _mix(_mix(torch.arange(m, dtype=torch.int32, device=x.device) ^ low) ^ high)
    entry = _mix(_mix(~torch.arange(k, dtype=torch.int32, device=x.device) ^ high) ^ low)
    step = m if x.is_cuda else max(1, _BLOCK // max(k, 1))
    for first in range(0, m, max(step, 1)):
        part = slice(first, first + step)
        drawn = _mix(token[part, None] ^ entry)
        drawn = drawn.bitwise_right_shift_(8).bitwise_and_(2**24 - 1).float().mul_(2.0**-24)
        y[part].masked_fill_(drawn < shares[part, None], 0)
    return y


def _mix(h: Tensor) -> Tensor:
    """32-bit words mixed, in place; right shifts of them bring in zeros."""
    h.bitwise_xor_((h >> 16).bitwise_and_(2**16 - 1)).mul_(_FIRST)
    return h.bitwise_xor_((h >> 15).bitwise_and_(2**17 - 1)).mul_(_SECOND)
