"""Autograd Functions with hand-written gradients: the LoRA linear, and cross-entropy over a frozen head.

What is computed is in `numllm.reference`. Here nothing is computed twice, no gradient of a frozen weight is
formed, and the products go to cuBLAS, to the CPU's library or to the kernels of `numllm_kernels`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

IMPLEMENTATIONS = ("auto", "torch", "triton", "triton-fused")
"""auto: triton for CUDA tensors where it is installed, else torch. triton: the thin products by kernels, the
big one by cuBLAS or by the kernel with a low-rank epilogue, as `numllm_kernels.tiles.FUSED` says of the GPU.
triton-fused: the big one by the kernel."""

_HALVES = (torch.float16, torch.bfloat16)
_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDE_BLOCK = 16 * 2**20
"""Elements of a 16-bit weight that the CPU path widens to fp32 at a time: 64 MiB."""
_FEW_TOKENS = 8
"""Below this many tokens, reading a weight costs more than multiplying with it."""


def lora_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scales: Tensor,
    columns: Tensor | None = None, rows: Tensor | None = None, impl: str = "auto",
) -> Tensor:
    """y = x wᵀ + bias + ((x aᵀ) ⊙ m) bᵀ, m[t, c] = scales[c] where token t goes through column c's adapter.

    x (..., K), w (N, K), bias (N,) | None: one dtype, fp32, fp16, bf16 or, with impl="torch", fp64.
    a (R, K), b (N, R): the factors of all adapters stacked, R the sum of the ranks, in any floating dtype:
    fp32 master weights are cast to x's dtype for the products, and their gradients, accumulated in fp32, come
    back in their own dtype. scales (R,) fp32: alpha / rank of each column's adapter.
    columns (R,) int32: each column's adapter; rows x.shape[:-1] int32: each token's adapter, −1 for none.
    With rows None every column is on for every token.
    → (..., N) in x's dtype. Gradients: x, a, b; none is formed that is not asked for. w and bias are frozen.

    ValueError: shapes or devices that do not fit, w or bias that requires a gradient, an impl that cannot run
    here. TypeError: a wrong dtype.
    """
    _check_lora(x, w, bias, a, b, scales, columns, rows)
    kernels = _kernels(impl, x)
    fused = kernels is not None and (impl == "triton-fused" or kernels.tiles.fused(x.device))
    flat = x.reshape(-1, x.shape[-1])
    if rows is None:
        columns = None
    else:
        rows, columns = rows.reshape(-1).contiguous(), columns.contiguous()
    y = _LoRALinear.apply(flat, w, bias, a, b, scales.contiguous(), columns, rows, kernels, fused)
    return y.view(*x.shape[:-1], w.shape[0])


def token_losses(x: Tensor, w: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
    """losses[i] = −log softmax(w x[i])[labels[i]], the softmax in fp32: cross-entropy over a frozen head.

    x (S, D) and w (V, D) in one dtype; labels (S,) int64 in 0..V−1. Drop the positions that do not count before
    the call. → (S,) in fp32 (fp64 for fp64 inputs), differentiable in x. w is frozen: ValueError when it
    requires a gradient.

    The logits exist for `chunk` rows at a time (default: `head_rows`), and the gradient of x is formed with them,
    so backward only scales its rows.
    """
    _check_token_losses(x, w, labels, chunk)
    if chunk is None:
        chunk = head_rows(w.shape[0], cuda=x.is_cuda)
    return _TokenLosses.apply(x, w, labels, chunk, torch.is_grad_enabled() and x.requires_grad)


def head_rows(vocab_size: int, *, cuda: bool) -> int:
    """Rows whose logits exist at a time: 2048 or 2 GiB on a GPU, whichever is more; 256 MiB on the CPU."""
    row = 4 * max(vocab_size, 1)
    return max(2048, 2**31 // row) if cuda else max(16, 2**28 // row)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scales: Tensor,
        columns: Tensor | None, rows: Tensor | None, kernels: ModuleType | None, fused: bool,
    ) -> Tensor:
        wide = x.dtype if kernels else _product_dtype(x, len(x))
        low_a, low_b = a.to(wide), b.to(wide)
        if kernels:
            s = kernels.down(x, low_a, scales, columns, rows)
            y = kernels.linear(x, w, bias, s, low_b) if fused else _product(x, w.T, s, low_b.T, bias)
        else:
            wide_x = x.to(wide)
            s = _mask(wide_x @ low_a.T, scales, columns, rows)
            y = _product(wide_x, w.T, s, low_b.T, bias).to(x.dtype)
        _, _, _, needs_a, needs_b = ctx.needs_input_grad[:5]
        ctx.save_for_backward(
            x if needs_a else None, w, s if needs_b else None, low_a, low_b, scales, columns, rows
        )
        ctx.kernels, ctx.fused, ctx.dtypes = kernels, fused, (a.dtype, b.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, s, a, b, scales, columns, rows = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b = ctx.needs_input_grad[:5]
        kernels, dtype = ctx.kernels, dy.dtype
        dy = dy if kernels else dy.to(b.dtype)
        ds = dx = da = db = None
        if kernels and needs_b and (needs_x or needs_a):
            ds, db = kernels.down_outer(dy, b, s, scales, columns, rows)
        elif kernels:
            ds = kernels.down(dy, b.T, scales, columns, rows) if needs_x or needs_a else None
            db = kernels.outer(s, dy).T if needs_b else None
        else:
            ds = _mask(dy @ b, scales, columns, rows) if needs_x or needs_a else None
            db = _outer(s, dy).T if needs_b else None
        if needs_x:
            dx = kernels.linear(dy, w.T, None, ds, a.T) if ctx.fused else _product(dy, w, ds, a).to(dtype)
        if needs_a:
            da = kernels.outer(ds, x) if kernels else _outer(ds, x.to(ds.dtype))
        da = None if da is None else da.to(ctx.dtypes[0])
        db = None if db is None else db.to(ctx.dtypes[1])
        return dx, None, None, da, db, None, None, None, None, None


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
            scores = _logits(rows, w, logits[: rows.shape[0]])
            scores -= scores.amax(dim=1, keepdim=True)
            picked = scores.gather(1, label)
            total = scores.exp_().sum(dim=1, keepdim=True)
            losses[part] = (total.log() - picked)[:, 0]
            if dx is not None:  # dlogits = softmax − one at the label
                scores /= total
                scores.scatter_add_(1, label, -torch.ones_like(total))
                dx[part] = _times_weight(scores, w)
        ctx.save_for_backward(dx)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dlosses: Tensor) -> tuple[Tensor | None, ...]:
        (dx,) = ctx.saved_tensors
        return dx * dlosses[:, None].to(dx.dtype), None, None, None, None


def _mask(s: Tensor, scales: Tensor, columns: Tensor | None, rows: Tensor | None) -> Tensor:
    """s ⊙ m, in place."""
    if rows is None:
        return s.mul_(scales)
    return s.mul_(torch.where(rows[:, None] == columns, scales, 0))


def _product(x: Tensor, w: Tensor, s: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """x w + s b + bias in x's dtype: x (M, K), w (K, N), s (M, R), b (R, N) → (M, N).

    The thin product first, then the big one added onto it in place: the library reads what is there while it
    multiplies, in fp32 before the only rounding, where the other order would read and write y once more.
    """
    y = s @ b if bias is None else torch.addmm(bias.to(s.dtype), s, b)
    if w.dtype == x.dtype:
        return y.addmm_(x, w)
    for rows, columns in _blocks(w):
        block = w[rows, columns].to(x.dtype)
        y[:, columns].addmm_(x[:, rows], block)
    return y


def _blocks(w: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cuts w (K, N) or (N, K)ᵀ along its outer side in memory, in blocks of about WIDE_BLOCK elements."""
    side = 0 if w.stride(0) >= w.stride(1) else 1
    step = max(1, WIDE_BLOCK // max(1, w.shape[1 - side]))
    for first in range(0, w.shape[side], step):
        cut = slice(first, first + step)
        yield (cut, slice(None)) if side == 0 else (slice(None), cut)


def _outer(u: Tensor, v: Tensor) -> Tensor:
    """uᵀ v: u (M, R), v (M, K) → (R, K), in fp32 for 16 bits on a GPU and in the inputs' dtype elsewhere."""
    if v.is_cuda and v.dtype in _HALVES:
        return torch.mm(u.T, v, out_dtype=torch.float32)
    return u.T @ v


def _logits(x: Tensor, w: Tensor, out: Tensor) -> Tensor:
    """out = x wᵀ in out's dtype, fp32 or fp64: x (S, D), w (V, D) → (S, V)."""
    if x.dtype == out.dtype:
        return torch.mm(x, w.T, out=out)
    if x.is_cuda:
        return torch.mm(x, w.T, out_dtype=out.dtype, out=out)
    if _product_dtype(w, len(x)) == w.dtype:
        return out.copy_(x @ w.T)
    wide = x.to(out.dtype)
    for rows, _ in _blocks(w):
        torch.mm(wide, w[rows].to(out.dtype).T, out=out[:, rows])
    return out


def _times_weight(scores: Tensor, w: Tensor) -> Tensor:
    """scores w: scores (S, V) in fp32 or fp64, w (V, D) → (S, D)."""
    if _product_dtype(w, len(scores)) == w.dtype:
        return scores.to(w.dtype) @ w
    product = scores.new_zeros(len(scores), w.shape[1])
    for rows, _ in _blocks(w):
        product.addmm_(scores[:, rows], w[rows].to(scores.dtype))
    return product


def _product_dtype(tensor: Tensor, tokens: int) -> torch.dtype:
    """The dtype to multiply in: the tensor's, or fp32 for 16 bits on a CPU without instructions for them.

    There torch's 16-bit products are plain loops, many times slower than widening to fp32 first. For a few
    tokens, where reading the weight is the cost, they are kept.
    """
    if tensor.is_cuda or tensor.dtype not in _HALVES or tokens < _FEW_TOKENS:
        return tensor.dtype
    if tensor.dtype == torch.bfloat16 and torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return tensor.dtype
    return torch.float32


@functools.cache
def _load_kernels() -> ModuleType | None:
    """The module of kernels; None where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("numllm_kernels.lora")


def _kernels(impl: str, x: Tensor) -> ModuleType | None:
    """The module of kernels when `impl` and x lead there, None for plain torch."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    if impl == "torch" or (impl == "auto" and not (x.is_cuda and x.dtype in _KERNEL_DTYPES)):
        return None
    kernels = _load_kernels()
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


def _check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...], because: str) -> None:
    if tensor.shape != wanted:
        raise ValueError(f"{name} must be {wanted} ({because}), got {tuple(tensor.shape)}")


def _check_lora(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scales: Tensor,
    columns: Tensor | None, rows: Tensor | None,
) -> None:
    if x.dim() == 0 or w.dim() != 2 or a.dim() != 2:
        raise ValueError(
            "x must be (..., K), w (N, K) and a (R, K), got "
            f"{tuple(x.shape)}, {tuple(w.shape)} and {tuple(a.shape)}"
        )
    (n, k), r = w.shape, a.shape[0]
    _check_shape("x", x, (*x.shape[:-1], k), "K of w")
    _check_shape("a", a, (r, k), "K of w")
    _check_shape("b", b, (n, r), "N of w, R of a")
    _check_shape("scales", scales, (r,), "R of a")
    if r == 0:
        raise ValueError("a must have at least one row, got rank 0; call torch.nn.functional.linear instead")
    if bias is not None:
        _check_shape("bias", bias, (n,), "N of w")
    if rows is not None:
        if columns is None:
            raise ValueError("rows needs columns: the adapter of each of a's rows, int32")
        _check_shape("columns", columns, (r,), "R of a")
        _check_shape("rows", rows, tuple(x.shape[:-1]), "an adapter for each token of x")
    _check_frozen(w=w, bias=bias)
    _check_alike(x, w=w, bias=bias)
    if not (x.is_floating_point() and a.is_floating_point() and b.is_floating_point()):
        raise TypeError(f"x, a and b must be floating point, got {x.dtype}, {a.dtype} and {b.dtype}")
    _check_dtype(torch.float32, scales=scales)
    _check_dtype(torch.int32, rows=rows, columns=columns if rows is not None else None)
    for name, tensor in {"a": a, "b": b, "scales": scales, "columns": columns, "rows": rows}.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}, got {tensor.device}")


def _check_token_losses(x: Tensor, w: Tensor, labels: Tensor, chunk: int | None) -> None:
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x must be (S, D) and w (V, D), got {tuple(x.shape)} and {tuple(w.shape)}")
    _check_shape("labels", labels, (x.shape[0],), "S of x")
    _check_dtype(torch.int64, labels=labels)
    _check_frozen(w=w)
    _check_alike(x, w=w)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, got {chunk}")
    # On a GPU the comparison would wait for the device; there the gather itself traps.
    if not labels.is_cuda and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < w.shape[0]:
        raise ValueError(
            f"labels must be in 0..{w.shape[0] - 1}, got {int(labels.min())}..{int(labels.max())}; "
            "drop the positions that do not count"
        )


def _check_frozen(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise ValueError(
                f"{name} must be frozen, got one that requires a gradient; call {name}.requires_grad_(False)"
            )


def _check_alike(x: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            raise TypeError(
                f"{name} must be of x's dtype and device, {x.dtype} on {x.device}; "
                f"got {tensor.dtype} on {tensor.device}"
            )


def _check_dtype(dtype: torch.dtype, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
