"""What the kernels share: reductions, how they are started, rows of tensors.

The kernels use built-in operations of triton.language only. Its helpers written in Triton itself (tl.zeros, tl.sum, …)
belong to the compiler or to the interpreter by how triton was first imported; built-ins do not.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def plus(a, b):
    """For tl.reduce: a sum."""
    return a + b


@triton.jit
def larger(a, b):
    """For tl.reduce: a maximum."""
    return tl.maximum(a, b)


INTERPRETED = not isinstance(plus, triton.JITFunction)
"""Whether the kernels run in Triton's interpreter (TRITON_INTERPRET=1 when this module was imported): then they take
CPU tensors, slowly."""


def launch(kernel: Any, grid: tuple[int, ...], tensor: Tensor, *args: Any, **settings: Any) -> Any:
    """Launches on the device of `tensor`, the kernel's first argument. What was compiled; None in the interpreter."""
    with torch.cuda.device_of(tensor):
        return kernel[grid](tensor, *args, **settings)


def most_warps() -> int:
    """Warps in the largest block: 1024 threads of NVIDIA's or AMD's width."""
    return 16 if torch.version.hip else 32


def power_of_two(value: int) -> int:
    """The least power of two that is not below `value` ≥ 1."""
    return 1 << (value - 1).bit_length()


def as_rows(x: Tensor) -> Tensor:
    """x (..., D) → (M, D) with neighbours in memory along D: a view where x's strides allow one."""
    flat = x.reshape(x.numel() // max(1, x.shape[-1]), x.shape[-1])
    return flat if flat.stride(1) == 1 or flat.shape[1] <= 1 else flat.contiguous()
