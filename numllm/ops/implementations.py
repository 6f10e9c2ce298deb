"""Which code computes an operation: torch's, or a module of `numllm_kernels`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "torch", "triton")
"""auto: the kernels for CUDA tensors of KERNEL_DTYPES where triton is installed, else torch."""
LORA_IMPLEMENTATIONS = (*IMPLEMENTATIONS, "triton-fused", "triton-produced")
"""Of LoRA linears. triton: the thin products by kernels, the big one by cuBLAS or by the kernel with the low-rank
product in it, the first thin one by a read of x or by the norm or SwiGLU that makes x (`producers`), as FUSED and
PRODUCED of `numllm_kernels.tiles` say of the GPU. triton-fused, triton-produced: as if they said so."""

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _constant(function: Callable[[], bool]) -> Callable[[], bool]:
    """`torch.compiler.assume_constant_result`, which would import the compiler: a compiler calls the function once."""
    function._dynamo_marked_constant = True
    return function


@functools.cache
def load_kernels(family: str) -> ModuleType | None:
    """numllm_kernels.<family>; None where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(f"numllm_kernels.{family}")


@_constant
def installed() -> bool:
    """Whether there are kernels."""
    return load_kernels("common") is not None


@_constant
def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, which takes CPU tensors."""
    return load_kernels("common").INTERPRETED


@_constant
def produced(device: torch.device) -> bool:
    """`numllm_kernels.tiles.produced`."""
    return load_kernels("tiles").produced(device)


def by_kernels(impl: str, x: Tensor, known: Sequence[str] = IMPLEMENTATIONS) -> bool:
    """Whether `impl`, one of `known`, and x lead to the kernels, or to torch.

    ValueError, TypeError: an impl that there is not, or that cannot run here.
    """
    if impl not in known:
        raise ValueError(f"impl must be one of {', '.join(known)}; got {impl!r}")
    if impl == "torch" or (impl == "auto" and not (x.is_cuda and x.dtype in KERNEL_DTYPES)):
        return False
    if impl == "auto":
        return installed()
    if not installed():
        raise ValueError(f"impl={impl!r} needs the package triton; install it or pass impl='torch'")
    if x.dtype not in KERNEL_DTYPES:
        raise TypeError(f"impl={impl!r} takes fp32, fp16 or bf16, got {x.dtype}; pass impl='torch'")
    if not x.is_cuda and not interpreted():
        raise ValueError(
            f"impl={impl!r} takes CUDA tensors, got {x.device}; pass impl='torch', or set TRITON_INTERPRET=1 "
            "before the first import to run the kernels in Triton's interpreter"
        )
    return True


def lora_kernels(impl: str, x: Tensor) -> ModuleType | None:
    """The kernels of LoRA linears when `impl`, one of LORA_IMPLEMENTATIONS, and x lead there; None for torch."""
    return load_kernels("lora") if by_kernels(impl, x, LORA_IMPLEMENTATIONS) else None
