"""What stands between the products of a block: RMSNorm, SwiGLU, rotary positions, by kernels or by torch.

What is computed is in `numllm.reference` and in `rope.rotate`, which are also what runs where kernels do not. The
kernels are operators of torch (`torch.ops.numllm`): a compiler sees each as one call, and checkpointing, CUDA graphs
and autograd treat them as they do torch's own. impl is one of `implementations.IMPLEMENTATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .. import reference, rope
from . import implementations
from .operator import Operator

WIDEST_NORM = 16384
"""Features of the widest row that the kernels norm: a block holds a row in its registers. Half as many where the weight
is trained, whose gradient takes as many again."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, impl: str = "auto") -> Tensor:
    """y = weight ⊙ x / sqrt(mean(x²) + eps) over the last dimension, in fp32 up to the product with weight.

    x (..., D), weight (D,) in one dtype: fp32, fp16, bf16 or, by torch, fp64. → (..., D). Gradients: x, weight.
    """
    check_norm(x, weight)
    if not _norm_by_kernels(impl, x, weight):
        return reference.rms_norm(x, weight, eps)
    return _norm(x, None, weight, eps, 1.0)[1]


def add_rms_norm(
    x: Tensor, added: Tensor, weight: Tensor, eps: float, scale: float = 1.0, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(h, rms_norm(h)) with h = x + scale · added, both (..., D): what one pass over memory gives.

    x, added (..., D), weight (D,) in one dtype. Gradients: x, added, weight.
    """
    check_norm(x, weight)
    check_alike("added", added, "x", x)
    if not _norm_by_kernels(impl, x, weight):
        h = torch.add(x, added, alpha=scale)
        return h, reference.rms_norm(h, weight, eps)
    return _norm(x, added, weight, eps, scale)[:2]


def swiglu(gate: Tensor, up: Tensor, impl: str = "auto") -> Tensor:
    """silu(gate) ⊙ up: gate, up (..., I) in one dtype → (..., I). Gradients: both."""
    check_alike("up", up, "gate", gate)
    if not implementations.by_kernels(impl, gate):
        return reference.swiglu(gate, up)
    return _swiglu(gate, up)


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, neighbours: bool = False, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """q (B, H, T, E) and k (B, G, T, E) turned as `rope.rotate` says: cos, sin (B or 1, 1, T, R ≤ E).

    One dtype for all four. cos and sin are of `rope.rotations`, which has each pair's angle twice: the kernel reads
    the second. Gradients: q, k.
    """
    if not implementations.by_kernels(impl, q):
        return tuple(rope.rotate(part, cos, sin, neighbours=neighbours) for part in (q, k))
    _check_rotate(q, k, cos, sin)
    return _rotate(q, k, cos, sin, neighbours, False)


def widest_norm(weight: Tensor) -> int:
    """Features of the widest row that the kernels norm with this weight."""
    return WIDEST_NORM // 2 if weight.requires_grad else WIDEST_NORM


def _kernels(family: str) -> ModuleType:
    return implementations.load_kernels(family)


def _norm_by_kernels(impl: str, x: Tensor, weight: Tensor) -> bool:
    """Rows wider than a block's registers hold go to torch, or nowhere."""
    if not implementations.by_kernels(impl, x):
        return False
    widest = widest_norm(weight)
    if impl == "triton" and x.shape[-1] > widest:
        raise ValueError(f"impl='triton' norms up to {widest} features, got {x.shape[-1]}; pass impl='torch'")
    return x.shape[-1] <= widest


def _run_norm(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(h, empty where it is x; y; 1 / rms of each row)."""
    h, y, rms = _kernels("norm").norm(x, weight, eps, added, scale)
    return x.new_empty(0) if added is None else h, y, rms


def fake_norm(x: Tensor, added: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes of (h, empty where it is x; y; 1 / rms of each row)."""
    rms = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    return x.new_empty(0 if added is None else x.shape), x.new_empty(x.shape), rms


def _run_norm_backward(
    dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, rms: Tensor, scale: float, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx; d(added), empty where it is dx; d(weight), empty where it is not needed)."""
    dx, dadded, dweight = _kernels("norm").norm_backward(dy, h, weight, rms, dh, scale, needs_weight)
    return dx, dx.new_empty(0) if dadded is dx else dadded, dx.new_empty(0) if dweight is None else dweight


def _fake_norm_backward(
    dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, rms: Tensor, scale: float, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    apart = dh is not None and scale != 1
    return h.new_empty(h.shape), h.new_empty(h.shape if apart else 0), h.new_empty(weight.shape if needs_weight else 0)


def setup_norm(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """What backward needs of (x, added, weight, eps, scale) and of (h, y, 1 / rms)."""
    x, added, weight, _, ctx.scale = inputs
    h, _, rms = output
    ctx.set_materialize_grads(False)
    ctx.fused = added is not None
    ctx.save_for_backward(h if ctx.fused else x, weight, rms)


def norm_gradients(
    ctx: FunctionCtx, run: Callable[..., Any], dh: Tensor | None, dy: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    """Of x, added and weight, and None for eps and scale."""
    h, weight, rms = ctx.saved_tensors
    if dy is None:  # only h is used
        return dh, None if dh is None else dh * ctx.scale, None, None, None
    if ctx.fused and dh is None:
        dh = torch.zeros_like(h)
    needs_weight = ctx.needs_input_grad[2]
    dx, dadded, dweight = run(dy, dh if ctx.fused else None, h, weight, rms, ctx.scale, needs_weight)
    if ctx.scale == 1:
        dadded = dx
    return dx, dadded if ctx.fused else None, dweight if needs_weight else None, None, None


_norm = Operator(
    "norm", "(Tensor x, Tensor? added, Tensor weight, float eps, float scale) -> (Tensor, Tensor, Tensor)",
    _run_norm, fake_norm,
)
norm_backward = Operator(
    "norm_backward",
    "(Tensor dy, Tensor? dh, Tensor h, Tensor weight, Tensor rms, float scale, bool needs_weight) "
    "-> (Tensor, Tensor, Tensor)", _run_norm_backward, _fake_norm_backward,
)
_norm.differentiate(setup_norm, norm_gradients, norm_backward)


def _fake_swiglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


_swiglu = Operator(
    "swiglu", "(Tensor gate, Tensor up) -> Tensor", lambda gate, up: _kernels("swiglu").swiglu(gate, up),
    lambda gate, up: gate.new_empty(gate.shape),
)
swiglu_backward = Operator(
    "swiglu_backward", "(Tensor dy, Tensor gate, Tensor up) -> (Tensor, Tensor)",
    lambda dy, gate, up: _kernels("swiglu").swiglu_backward(dy, gate, up), _fake_swiglu_backward,
)
_swiglu.differentiate(
    lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    lambda ctx, run, dy: run(dy, *ctx.saved_tensors), swiglu_backward,
)


def _run_rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, neighbours: bool, backward: bool
) -> tuple[Tensor, Tensor]:
    return _kernels("rope").rotate(q, k, cos, sin, neighbours=neighbours, backward=backward)


def _fake_rotate(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return tuple(part.new_empty(part.transpose(1, 2).shape).transpose(1, 2) for part in (q, k))


def _setup_rotate(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, cos, sin, ctx.neighbours, ctx.backward = inputs
    ctx.save_for_backward(cos, sin)


def _rotate_gradients(ctx: FunctionCtx, run: Callable[..., Any], dq: Tensor, dk: Tensor) -> tuple[Any, ...]:
    return *run(dq, dk, *ctx.saved_tensors, ctx.neighbours, not ctx.backward), None, None, None, None


_rotate = Operator(
    "rotate", "(Tensor q, Tensor k, Tensor cos, Tensor sin, bool neighbours, bool backward) -> (Tensor, Tensor)",
    _run_rotate, _fake_rotate,
)
_rotate.differentiate(_setup_rotate, _rotate_gradients, _rotate)


def check_alike(name: str, tensor: Tensor, other: str, wanted: Tensor) -> None:
    """ValueError, TypeError: `tensor` must have the shape and dtype of `wanted`; their names."""
    if tensor.shape != wanted.shape:
        raise ValueError(f"{name} must have {other}'s shape {tuple(wanted.shape)}, got {tuple(tensor.shape)}")
    _check_dtype(name, tensor, other, wanted)


def _check_dtype(name: str, tensor: Tensor, other: str, wanted: Tensor) -> None:
    if tensor.dtype != wanted.dtype or tensor.device != wanted.device:
        raise TypeError(
            f"{name} must be of {other}'s dtype and device, {wanted.dtype} on {wanted.device}; "
            f"got {tensor.dtype} on {tensor.device}"
        )


def check_norm(x: Tensor, weight: Tensor) -> None:
    """ValueError, TypeError: x must be (..., D), weight (D,), in one dtype."""
    if x.dim() == 0 or weight.shape != x.shape[-1:] or not x.shape[-1]:
        raise ValueError(f"x must be (..., D) and weight (D,), got {tuple(x.shape)} and {tuple(weight.shape)}")
    _check_dtype("weight", weight, "x", x)


def _check_rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4 or q.shape[::2] != k.shape[::2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q must be (B, H, T, E) and k (B, G, T, E), got {tuple(q.shape)} and {tuple(k.shape)}")
    (batch, _, count, size), rotated = q.shape, cos.shape[-1]
    if cos.dim() != 4 or cos.shape != (cos.shape[0], 1, count, rotated) or cos.shape[0] not in (1, batch):
        raise ValueError(f"cos must be (B or 1, 1, T, R) for q {tuple(q.shape)}, got {tuple(cos.shape)}")
    if rotated % 2 or not 0 < rotated <= size:
        raise ValueError(f"cos must be for an even number of q's {size} features, got {rotated}")
    check_alike("sin", sin, "cos", cos)
    for name, tensor in {"k": k, "cos": cos}.items():
        _check_dtype(name, tensor, "q", q)
