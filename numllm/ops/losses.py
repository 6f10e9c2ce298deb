"""Cross-entropy over a frozen head, with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .. import products
from .checks import check_alike, check_dtype, check_frozen, check_shape


def token_losses(x: Tensor, w: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
    """losses[i] = −log softmax(w x[i])[labels[i]], the softmax in fp32: cross-entropy over a frozen head.

    x (S, D) and w (V, D) in one dtype; labels (S,) int64 in 0..V−1. Drop the positions that do not count before
    the call. → (S,) in fp32 (fp64 for fp64 inputs), differentiable in x. w is frozen: ValueError when it
    requires a gradient.

    The logits exist for `chunk` rows at a time (default: `head_rows`), and the gradient of x is formed with them,
    so backward only scales its rows.
    """
    _check(x, w, labels, chunk)
    if chunk is None:
        chunk = head_rows(w.shape[0], cuda=x.is_cuda)
    return _TokenLosses.apply(x, w, labels, chunk, torch.is_grad_enabled() and x.requires_grad)


def head_rows(vocab_size: int, *, cuda: bool) -> int:
    """Rows whose logits exist at a time: 2048 or 2 GiB on a GPU, whichever is more; 256 MiB on the CPU."""
    row = 4 * max(vocab_size, 1)
    return max(2048, 2**31 // row) if cuda else max(16, 2**28 // row)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, w: Tensor, labels: Tensor, chunk: int, forms_gradient: bool
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        losses = torch.empty(x.shape[0], dtype=wide, device=x.device)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if forms_gradient else None
        logits = torch.empty((min(chunk, x.shape[0]), w.shape[0]), dtype=wide, device=x.device)
        for first in range(0, x.shape[0], chunk):
            part = slice(first, first + chunk)
            rows, label = x[part], labels[part, None]
            scores = products.logits(rows, w, logits[: rows.shape[0]])
            scores -= scores.amax(dim=1, keepdim=True)
            picked = scores.gather(1, label)
            total = scores.exp_().sum(dim=1, keepdim=True)
            losses[part] = (total.log() - picked)[:, 0]
            if dx is not None:  # dlogits = softmax − one at the label
                scores /= total
                scores.scatter_add_(1, label, -torch.ones_like(total))
                dx[part] = products.times_weight(scores, w)
        ctx.save_for_backward(dx)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dlosses: Tensor) -> tuple[Tensor | None, ...]:
        (dx,) = ctx.saved_tensors
        return dx * dlosses[:, None].to(dx.dtype), None, None, None, None


def _check(x: Tensor, w: Tensor, labels: Tensor, chunk: int | None) -> None:
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x must be (S, D) and w (V, D), got {tuple(x.shape)} and {tuple(w.shape)}")
    check_shape("labels", labels, (x.shape[0],), "S of x")
    check_dtype(torch.int64, labels=labels)
    check_frozen(w=w)
    check_alike(x, w=w)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, got {chunk}")
    # On a GPU the comparison would wait for the device; there the gather itself traps.
    if not labels.is_cuda and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < w.shape[0]:
        raise ValueError(
            f"labels must be in 0..{w.shape[0] - 1}, got {int(labels.min())}..{int(labels.max())}; "
            "drop the positions that do not count"
        )
