"""One correct rounding from fp64 to the dtypes of checkpoints."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Rounder:
    """x (n,) contiguous fp64 → the nearest numbers of fp32, fp16 or bf16, ties to even, in memory used again.

    Going through fp32, as a plain conversion does, rounds twice and errs where the fp32 number falls in the
    middle between two of the narrow dtype; those few are found by their bits and done again.
    """

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.single = torch.empty(size, dtype=torch.float32)
        self.narrow = self.single if dtype == torch.float32 else torch.empty(size, dtype=dtype)
        self._raw, self._rounded = self.single.numpy().view(np.uint32), bits(self.narrow)
        self._doubtful = np.empty(size, dtype=bool)

    def __call__(self, x: Tensor) -> Tensor:
        """The rounded numbers (n,); they last until the next call."""
        n = len(x)
        single = self.single[:n].copy_(x)
        if self.narrow is self.single:
            return single
        narrow = self.narrow[:n].copy_(single)
        raw, doubtful = self._raw[:n], self._doubtful[:n]
        # The bits that go, pushed to the top over those that stay: 100…0 is the middle.
        np.left_shift(raw, 16 if narrow.dtype == torch.bfloat16 else 19, out=raw)
        np.equal(raw, 1 << 31, out=doubtful)
        if narrow.dtype == torch.float16:  # below 2⁻¹⁴ it is subnormal, and the middle not a fixed pattern of bits
            doubtful |= (self._rounded[:n] & 0x7FFF) <= 0x400
        where = doubtful.nonzero()[0]
        if len(where):
            self._rounded[where] = bits(nearest(torch.from_numpy(x.numpy()[where]), narrow.dtype))
        return narrow


def nearest(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What `Rounder` gives, in new memory and with every element rounded the careful way: for devices."""
    return x.float() if dtype == torch.float32 else _to_odd(x).to(dtype)


def _to_odd(x: Tensor) -> Tensor:
    """fp64 → fp32, towards zero, the last bit set where that was not exact: a later rounding is then right."""
    single = x.float()
    error = x - single.double()
    inexact = error != 0
    beyond = inexact & ((error < 0) ^ single.signbit())
    return ((single.view(torch.int32) - beyond.int()) | inexact.int()).view(torch.float32)


def bits(tensor: Tensor) -> np.ndarray:
    """The bits of a floating-point tensor as integers, in its own memory."""
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16).numpy()
