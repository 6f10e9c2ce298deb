"""Cross-entropy over a frozen head, rows at a time: the logits of all tokens never exist.

    zᵢ = w xᵢ        lossᵢ = lse(zᵢ) − zᵢ[labelᵢ] + β lse(zᵢ)²
    dxᵢ = d(lossᵢ) wᵀ (softmax(zᵢ) (1 + 2 β lse(zᵢ)) − one at labelᵢ)

The head is frozen, so dxᵢ but for the factor d(lossᵢ) is known as soon as the logits are: forward takes both products
and keeps dx alone; backward multiplies its rows. By kernels the logits are in x's dtype and turn into their own
gradient in place (`numllm_kernels.cross_entropy`); by torch they are in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .. import products
from . import implementations
from .operator import Operator

IGNORED = -100
"""The label of a row that loses nothing, as torch has it. It costs what others cost: better drop such rows."""


def token_losses(
    x: Tensor, w: Tensor, labels: Tensor, chunk: int | None = None, *, beta: float = 0.0, impl: str = "auto"
) -> Tensor:
    """losses[i] = −log softmax(w x[i])[labels[i]] + β lse², softmax and lse = log Σ exp in fp32.

    x (S, D) and w (V, D) in one dtype: fp32, fp16, bf16 or, by torch, fp64; labels (S,) int64 in 0..V−1 or IGNORED, of
    which the loss is 0. beta: of the z-loss, which keeps lse near 0 (arXiv 2204.02311). → (S,) in fp32 (fp64 for fp64),
    differentiable in x. w is frozen.

    The logits exist for `chunk` rows at a time, default `head_rows`. impl: one of `implementations.IMPLEMENTATIONS`.

    ValueError: shapes that do not fit, a w that requires a gradient, a label out of range (on a GPU its loss is NaN by
    kernels, and torch's gather traps). TypeError: a wrong dtype.
    """
    _check(x, w, labels, chunk)
    kernels = implementations.by_kernels(impl, x)
    if chunk is None:
        chunk = head_rows(w.shape[0], x.element_size() if kernels else 4, cuda=x.is_cuda)
    forms_gradient = torch.is_grad_enabled() and x.requires_grad
    return _token_losses(x, w, labels, chunk, beta, kernels, forms_gradient)[0]


def head_rows(vocab_size: int, element_size: int = 4, *, cuda: bool) -> int:
    """Rows whose logits exist at a time: 2048 or 512 MiB on a GPU, 256 or 32 MiB on the CPU, whichever is more.

    Fewer rows would not fill a GPU; on the CPU more leave the cache.
    """
    row = element_size * max(vocab_size, 1)
    return max(2048, 2**29 // row) if cuda else max(256, 2**25 // row)


def _run(
    x: Tensor, w: Tensor, labels: Tensor, chunk: int, beta: float, kernels: bool, forms_gradient: bool
) -> tuple[Tensor, Tensor]:
    """(losses; their gradients in x but for the factor from above, empty unless formed)."""
    _check_range(labels, w.shape[0])
    labels = labels.contiguous()
    wide = torch.promote_types(x.dtype, torch.float32)
    losses = torch.empty(x.shape[0], dtype=wide, device=x.device)
    dx = torch.empty(x.shape if forms_gradient else 0, dtype=x.dtype, device=x.device)
    fill = _by_kernels if kernels else _by_torch
    size = -(-w.shape[0] // 64) * 64 if kernels else w.shape[0]  # wide loads want rows that start at even addresses
    logits = torch.empty((min(chunk, x.shape[0]), size), dtype=x.dtype if kernels else wide, device=x.device)
    for first in range(0, x.shape[0], chunk):
        part = slice(first, first + chunk)
        rows = x[part]
        fill(rows, w, labels[part], logits[: len(rows)], losses[part], dx[part] if forms_gradient else None, beta)
    return losses, dx


def _by_kernels(
    x: Tensor, w: Tensor, labels: Tensor, logits: Tensor, losses: Tensor, dx: Tensor | None, beta: float
) -> None:
    scores = logits[:, : w.shape[0]]
    torch.mm(x, w.T, out=scores)
    implementations.load_kernels("cross_entropy").cross_entropy(
        logits, labels, losses, columns=w.shape[0], ignored=IGNORED, beta=beta, gradient=dx is not None
    )
    if dx is not None:
        torch.mm(scores, w, out=dx)


def _by_torch(
    x: Tensor, w: Tensor, labels: Tensor, logits: Tensor, losses: Tensor, dx: Tensor | None, beta: float
) -> None:
    counts = labels != IGNORED
    label = torch.where(counts, labels, 0)[:, None]
    scores = products.logits(x, w, logits)
    most = scores.amax(dim=1, keepdim=True)
    scores -= most
    picked = scores.gather(1, label)
    total = scores.exp_().sum(dim=1, keepdim=True)
    found = total.log() - picked
    if beta:
        lse = total.log() + most
        found += beta * lse.square()
    losses.copy_(torch.where(counts, found[:, 0], 0))
    if dx is not None:  # dlogits = softmax − one at the label
        scores /= total
        if beta:
            scores *= 1 + 2 * beta * lse
        scores.scatter_add_(1, label, -torch.ones_like(total))
        dx.copy_(products.times_weight(scores, w))
        dx.masked_fill_(~counts[:, None], 0)


def _fake(
    x: Tensor, w: Tensor, labels: Tensor, chunk: int, beta: float, kernels: bool, forms_gradient: bool
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape[0], dtype=wide), x.new_empty(x.shape if forms_gradient else 0)


def _setup(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *_, ctx.kernels, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _gradients(ctx: FunctionCtx, _: None, dlosses: Tensor | None, __: Tensor | None) -> tuple[Tensor | None, ...]:
    (dx,) = ctx.saved_tensors
    if dlosses is None:
        return (None,) * 7
    factors = dlosses[:, None] if ctx.kernels else dlosses[:, None].to(dx.dtype)
    return (dx * factors).to(dx.dtype), None, None, None, None, None, None


_token_losses = Operator(
    "token_losses",
    "(Tensor x, Tensor w, Tensor labels, int chunk, float beta, bool kernels, bool forms_gradient) -> (Tensor, Tensor)",
    _run, _fake,
)
_token_losses.differentiate(_setup, _gradients)


def _check(x: Tensor, w: Tensor, labels: Tensor, chunk: int | None) -> None:
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x must be (S, D) and w (V, D), got {tuple(x.shape)} and {tuple(w.shape)}")
    if labels.shape != x.shape[:1]:
        raise ValueError(f"labels must be ({x.shape[0]},) (S of x), got {tuple(labels.shape)}")
    if labels.dtype != torch.int64 or labels.device != x.device:
        raise TypeError(f"labels must be torch.int64 on {x.device}, got {labels.dtype} on {labels.device}")
    if w.requires_grad:
        raise ValueError("w must be frozen, got one that requires a gradient; call w.requires_grad_(False)")
    if w.dtype != x.dtype or w.device != x.device:
        raise TypeError(
            f"w must be of x's dtype and device, {x.dtype} on {x.device}; got {w.dtype} on {w.device}"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, got {chunk}")


def _check_range(labels: Tensor, size: int) -> None:
    """On a GPU the comparison would wait for the device."""
    if labels.is_cuda:
        return
    found = labels[labels != IGNORED]
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < size:
        raise ValueError(f"labels must be in 0..{size - 1} or {IGNORED}, got {int(found.min())}..{int(found.max())}")
