"""Which code computes an operator: torch's, or the kernels of `numllm_kernels`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "torch", "triton", "triton-fused")
"""auto: triton for CUDA tensors where it is installed, else torch. triton: the thin products by kernels, the
big one by cuBLAS or by the kernel with the low-rank product in it, as `numllm_kernels.tiles.FUSED` says of the GPU.
triton-fused: the big one by the kernel."""

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@functools.cache
def load_kernels() -> ModuleType | None:
    """The module of kernels; None where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("numllm_kernels.lora")


def kernels_for(impl: str, x: Tensor) -> ModuleType | None:
    """The module of kernels when `impl` and x lead there, None for plain torch.

    ValueError, TypeError: an impl that there is not, or that cannot run here.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    if impl == "torch" or (impl == "auto" and not (x.is_cuda and x.dtype in _KERNEL_DTYPES)):
        return None
    kernels = load_kernels()
    if impl == "auto":
        return kernels
    if kernels is None:
        raise ValueError(f"impl={impl!r} needs the package triton; install it or pass impl='torch'")
    if x.dtype not in _KERNEL_DTYPES:
        raise TypeError(f"impl={impl!r} takes fp32, fp16 or bf16, got {x.dtype}; pass impl='torch'")
    if not x.is_cuda and not kernels.INTERPRETED:
        raise ValueError(
            f"impl={impl!r} takes CUDA tensors, got {x.device}; pass impl='torch', or set TRITON_INTERPRET=1 "
            "before the first import to run the kernels in Triton's interpreter"
        )
    return kernels
