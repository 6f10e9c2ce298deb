"""Operations with hand-written gradients: LoRA linears, norm, SwiGLU, rotation, cross-entropy over a frozen head.

What is computed is in `numllm.reference`. Here nothing is computed twice, no gradient of a frozen weight is
formed, and the products go to cuBLAS, to the CPU's library or to the kernels of `numllm_kernels`.
"""

from __future__ import annotations

from .implementations import IMPLEMENTATIONS, LORA_IMPLEMENTATIONS
from .lora import lora_linear, lora_linears, reads_once
from .losses import IGNORED, head_rows, token_losses
from .producers import Thin, add_norm_down, norm_down, produces, swiglu_down

__all__ = [
    "IGNORED", "IMPLEMENTATIONS", "LORA_IMPLEMENTATIONS", "Thin", "add_norm_down", "head_rows", "lora_linear",
    "lora_linears", "norm_down", "produces", "reads_once", "swiglu_down", "token_losses",
]  # fmt: skip
