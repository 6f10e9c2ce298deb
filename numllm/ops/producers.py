"""RMSNorm and SwiGLU that also give the thin product of the LoRA linears behind them, from what they have in registers.

    y = rms_norm(x) or swiglu(gate, up)        s = (y aᵀ) ⊙ m

s is handed on to `lora_linears`, which then does not read y for it. It is no part of autograd's graph: the linears give
a its gradient, and y theirs, as if they had made s themselves.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from . import elementwise, implementations, passes
from .implementations import LORA_IMPLEMENTATIONS, by_kernels, produced
from .operator import Operator


class Thin(NamedTuple):
    """The thin product that the LoRA linears of one y begin with.

    a (R, K), scales (R,), columns (R,) and rows y.shape[:-1], or None: those of `lora_linears`. impl: the linears' own.
    s (..., R) in the dtype of products: (y aᵀ) ⊙ m once it is there.
    """

    a: Tensor
    scales: Tensor
    columns: Tensor | None
    rows: Tensor | None
    impl: str
    s: Tensor | None = None


def produces(x: Tensor, impl: str) -> bool:
    """Whether what makes x is to give the thin product as well: by kernels, and where that is the faster way."""
    return by_kernels(impl, x, LORA_IMPLEMENTATIONS) and (impl == "triton-produced" or produced(x.device))


def norm_down(x: Tensor, weight: Tensor, eps: float, thin: Thin) -> tuple[Tensor, Thin]:
    """(y = `rms_norm`(x), thin with s): x (..., D), weight (D,) in one dtype. Gradients: x, weight."""
    if not _by_kernels(x, weight, thin):
        y = elementwise.rms_norm(x, weight, eps)
        return y, _from(y, thin)
    elementwise.check_norm(x, weight)
    _, y, _, s = _norm_down(x, None, weight, eps, 1.0, *_given(thin))
    return y, _with(thin, s, y)


def add_norm_down(
    x: Tensor, added: Tensor, weight: Tensor, eps: float, scale: float, thin: Thin
) -> tuple[Tensor, Tensor, Thin]:
    """(h, y = `rms_norm`(h), thin with s) with h = x + scale · added. Gradients: x, added, weight."""
    if not _by_kernels(x, weight, thin):
        h, y = elementwise.add_rms_norm(x, added, weight, eps, scale)
        return h, y, _from(y, thin)
    elementwise.check_norm(x, weight)
    elementwise.check_alike("added", added, "x", x)
    h, y, _, s = _norm_down(x, added, weight, eps, scale, *_given(thin))
    return h, y, _with(thin, s, y)


def swiglu_down(gate: Tensor, up: Tensor, thin: Thin) -> tuple[Tensor, Thin]:
    """(y = `swiglu`(gate, up), thin with s): gate, up (..., I) in one dtype. Gradients: both."""
    if not by_kernels(thin.impl, gate, LORA_IMPLEMENTATIONS):
        y = elementwise.swiglu(gate, up)
        return y, _from(y, thin)
    elementwise.check_alike("up", up, "gate", gate)
    y, s = _swiglu_down(gate, up, *_given(thin))
    return y, _with(thin, s, y)


def _by_kernels(x: Tensor, weight: Tensor, thin: Thin) -> bool:
    """Backward holds rows in registers, which wide ones do not fit; their s is taken apart then."""
    return by_kernels(thin.impl, x, LORA_IMPLEMENTATIONS) and x.shape[-1] <= elementwise.widest_norm(weight)


def _from(y: Tensor, thin: Thin) -> Thin:
    """s by a read of y."""
    with torch.no_grad():
        s = passes.down(y.reshape(-1, y.shape[-1]), *_given(thin), None, None, thin.impl)
    return _with(thin, s, y)


def _with(thin: Thin, s: Tensor, y: Tensor) -> Thin:
    return thin._replace(s=s.detach().view(*y.shape[:-1], s.shape[-1]))


def _given(thin: Thin) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """a, scales, and columns and rows (M,) where there are rows."""
    scales, rows = thin.scales.contiguous(), thin.rows
    if rows is None:
        return thin.a.detach(), scales, None, None
    return thin.a.detach(), scales, thin.columns.contiguous(), rows.reshape(-1).contiguous()


def _kernels() -> ModuleType:
    return implementations.load_kernels("producer")


def _run_norm_down(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, scale: float, a: Tensor, scales: Tensor,
    columns: Tensor | None, rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(h, empty where it is x; y; 1 / rms of each row; s)."""
    h, y, rms, s = _kernels().norm_down(x, weight, eps, a.to(x.dtype), scales, columns, rows, added, scale)
    return x.new_empty(0) if added is None else h, y, rms, s


def _fake_norm_down(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, scale: float, a: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *elementwise.fake_norm(x, added), x.new_empty(x.numel() // x.shape[-1], a.shape[0])


def _setup_norm_down(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    elementwise.setup_norm(ctx, inputs[:5], output[:3])


_norm_down = Operator(
    "norm_down",
    "(Tensor x, Tensor? added, Tensor weight, float eps, float scale, Tensor a, Tensor scales, Tensor? columns, "
    "Tensor? rows) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_norm_down, _fake_norm_down,
)
_norm_down.differentiate(
    _setup_norm_down,
    lambda ctx, run, *gradients: (*elementwise.norm_gradients(ctx, run, *gradients[:3]), *[None] * 4),
    elementwise.norm_backward,
)


def _setup_swiglu_down(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:2])


def _swiglu_gradients(ctx: FunctionCtx, run: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    both = (None, None) if dy is None else run(dy, *ctx.saved_tensors)
    return *both, None, None, None, None


_swiglu_down = Operator(
    "swiglu_down",
    "(Tensor gate, Tensor up, Tensor a, Tensor scales, Tensor? columns, Tensor? rows) -> (Tensor, Tensor)",
    lambda gate, up, a, *choice: _kernels().swiglu_down(gate, up, a.to(gate.dtype), *choice),
    lambda gate, up, a, *_: (gate.new_empty(gate.shape), gate.new_empty(gate.numel() // gate.shape[-1], a.shape[0])),
)
_swiglu_down.differentiate(_setup_swiglu_down, _swiglu_gradients, elementwise.swiglu_backward)
