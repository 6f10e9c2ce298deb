"""Which code computes an operation: torch's, or a module of `numllm_kernels`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "torch", "triton")
"""auto: the kernels for CUDA tensors of KERNEL_DTYPES where triton is installed, else torch."""

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@functools.cache
def load_kernels(family: str) -> ModuleType | None:
    """numllm_kernels.<family>; None where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(f"numllm_kernels.{family}")


@torch.compiler.assume_constant_result
def installed() -> bool:
    """Whether there are kernels."""
    return load_kernels("common") is not None


@torch.compiler.assume_constant_result
def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, which takes CPU tensors."""
    return load_kernels("common").INTERPRETED


def by_kernels(impl: str, x: Tensor) -> bool:
    """Whether `impl` and x lead to the kernels, or to torch.

    ValueError, TypeError: an impl that there is not, or that cannot run here.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    if impl == "torch" or (impl == "auto" and not (x.is_cuda and x.dtype in KERNEL_DTYPES)):
        return False
    if impl == "auto":
        return installed()
    if not installed():
        raise ValueError("impl='triton' needs the package triton; install it or pass impl='torch'")
    if x.dtype not in KERNEL_DTYPES:
        raise TypeError(f"impl='triton' takes fp32, fp16 or bf16, got {x.dtype}; pass impl='torch'")
    if not x.is_cuda and not interpreted():
        raise ValueError(
            f"impl='triton' takes CUDA tensors, got {x.device}; pass impl='torch', or set TRITON_INTERPRET=1 "
            "before the first import to run the kernels in Triton's interpreter"
        )
    return True
