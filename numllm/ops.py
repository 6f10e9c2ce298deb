"""Autograd Functions with hand-written gradients: the LoRA linear, and cross-entropy over a frozen head.

What is computed is in `numllm.reference`. Here nothing is computed twice, no gradient of a frozen weight is
formed, and the products go to cuBLAS, to the CPU's library or to the kernels of `numllm_kernels`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from . import products

IMPLEMENTATIONS = ("auto", "torch", "triton", "triton-fused")
"""auto: triton for CUDA tensors where it is installed, else torch. triton: the thin products by kernels, the
big one by cuBLAS or by the kernel with a low-rank epilogue, as `numllm_kernels.tiles.FUSED` says of the GPU.
triton-fused: the big one by the kernel."""

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def lora_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scales: Tensor,
    columns: Tensor | None = None, rows: Tensor | None = None, impl: str = "auto", *,
    dropout: Tensor | None = None, seed: Tensor | None = None,
) -> Tensor:
    """y = x wᵀ + bias + ((x̃ aᵀ) ⊙ m) bᵀ, m[t, c] = scales[c] where token t goes through column c's adapter.

    x (..., K), w (N, K), bias (N,) | None: one dtype, fp32, fp16, bf16 or, with impl="torch", fp64.
    a (R, K), b (N, R): the factors of all adapters stacked, R the sum of the ranks, in any floating dtype:
    fp32 master weights are cast to x's dtype for the products, and their gradients, accumulated in fp32, come
    back in their own dtype. scales (R,) fp32: alpha / rank of each column's adapter.
    columns (R,) int32: each column's adapter; rows x.shape[:-1] int32: each token's adapter, −1 for none.
    With rows None every column is on for every token.
    dropout x.shape[:-1] fp32 in [0, 1): x̃ is x with that share of a token's entries at 0 and the others divided by
    1 − dropout; x̃ is x where it is None. Which entries is a function of seed () int64, so nothing of x̃ is kept:
    backward makes it again.
    → (..., N) in x's dtype. Gradients: x, a, b; none is formed that is not asked for. w and bias are frozen.

    ValueError: shapes or devices that do not fit, w or bias that requires a gradient, an impl that cannot run
    here. TypeError: a wrong dtype.
    """
    _check_lora(x, w, bias, a, b, scales, columns, rows, dropout, seed)
    flat = x.reshape(-1, x.shape[-1])
    if rows is None:
        columns = None
    else:
        rows, columns = rows.reshape(-1).contiguous(), columns.contiguous()
    if dropout is not None:
        dropout = dropout.reshape(-1)
    given = (flat, w, bias, a, b, scales.contiguous(), columns, rows, dropout, seed, impl)
    # A compiler sees one operator; without one, the Function's way is shorter.
    y = torch.ops.numllm.lora_linear(*given)[0] if torch.compiler.is_compiling() else _LoRALinear.apply(*given)
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
    """Rows whose logits exist at a time: 2048 or 2 GiB on a GPU, 256 or 32 MiB on the CPU, whichever is more.

    On the CPU more are no faster: they leave the cache, and every step the system must clear that much memory anew.
    """
    row = 4 * max(vocab_size, 1)
    return max(2048, 2**31 // row) if cuda else max(256, 2**25 // row)


def _lora_forward(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scales: Tensor, columns: Tensor | None,
    rows: Tensor | None, dropout: Tensor | None, seed: Tensor | None, impl: str,
) -> tuple[Tensor, Tensor]:
    """(y, s = (x̃ aᵀ) ⊙ m), x flat."""
    kernels, fused = _ways(impl, x)
    wide = x.dtype if kernels else products.product_dtype(x, len(x))
    low_a, low_b = a.to(wide), b.to(wide)
    dropped = x if dropout is None else x * _keep(x, dropout, seed)
    if kernels:
        s = kernels.down(dropped, low_a, scales, columns, rows)
        return kernels.linear(x, w, bias, s, low_b) if fused else products.product(x, w.T, s, low_b.T, bias), s
    parts = _parts(columns, rows, x)
    s = _down(dropped.to(wide), low_a.T, scales, columns, rows, parts)
    return products.product(x.to(wide), w.T, s, low_b.T, bias, parts=parts).to(x.dtype), s


def _lora_backward(
    dy: Tensor, x: Tensor | None, w: Tensor, a: Tensor, b: Tensor, s: Tensor | None, scales: Tensor,
    columns: Tensor | None, rows: Tensor | None, dropout: Tensor | None, seed: Tensor | None, impl: str,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dX, dA, dB), each None unless needed; x is needed for dA and with dropout, s for dB."""
    needs_x, needs_a, needs_b = needs
    kernels, fused = _ways(impl, dy)
    dtype = dy.dtype
    wide = dtype if kernels else products.product_dtype(dy, len(dy))
    low_a, low_b, dy = a.to(wide), b.to(wide), dy.to(wide)
    ds = dx = da = db = parts = None
    if kernels and needs_b and (needs_x or needs_a):
        ds, db = kernels.down_outer(dy, low_b, s, scales, columns, rows)
    elif kernels:
        ds = kernels.down(dy, low_b.T, scales, columns, rows) if needs_x or needs_a else None
        db = kernels.outer(s, dy).T if needs_b else None
    else:
        parts = _parts(columns, rows, dy)
        ds = _down(dy, low_b, scales, columns, rows, parts) if needs_x or needs_a else None
        db = products.outer(s, dy).T if needs_b else None
    keep = None if dropout is None or ds is None else _keep(x, dropout, seed)
    if needs_x and keep is None and fused:
        dx = kernels.linear(dy, w.T, None, ds, low_a.T)
    elif needs_x:
        dx = products.product(dy, w, ds, low_a, keep=keep, parts=parts).to(dtype)
    if needs_a:
        seen = x if keep is None else x * keep
        da = kernels.outer(ds, seen) if kernels else products.outer(ds, seen.to(ds.dtype))
    return dx, None if da is None else da.to(a.dtype), None if db is None else db.to(b.dtype)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scales: Tensor,
        columns: Tensor | None, rows: Tensor | None, dropout: Tensor | None, seed: Tensor | None, impl: str,
    ) -> Tensor:
        y, s = _lora_forward(x, w, bias, a, b, scales, columns, rows, dropout, seed, impl)
        _save(ctx, x, w, a, b, s, scales, columns, rows, dropout, seed, impl)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, da, db = _lora_backward(dy, *ctx.saved_tensors, ctx.impl, _needs(ctx))
        return dx, None, None, da, db, None, None, None, None, None, None


def _save(ctx: FunctionCtx, x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor, *rest: Any) -> None:
    """Keeps what the gradients that are asked for take."""
    _, needs_a, needs_b = _needs(ctx)
    *others, ctx.impl = rest
    dropout = others[3]
    ctx.save_for_backward(
        x if needs_a or dropout is not None else None, w, a, b, s if needs_b else None, *others
    )


def _needs(ctx: FunctionCtx) -> tuple[bool, bool, bool]:
    """Whether the gradients of x, a and b are asked for."""
    return ctx.needs_input_grad[0], ctx.needs_input_grad[3], ctx.needs_input_grad[4]


_LORA = "Tensor? columns, Tensor? rows, Tensor? dropout, Tensor? seed, str impl"


@torch.library.custom_op(
    "numllm::lora_linear", mutates_args=(),
    schema=f"(Tensor x, Tensor w, Tensor? bias, Tensor a, Tensor b, Tensor scales, {_LORA}) -> (Tensor, Tensor)",
)
def _lora_operator(*given: Any) -> tuple[Tensor, Tensor]:
    return _lora_forward(*given)


@_lora_operator.register_fake
def _(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = x.dtype if x.is_cuda else products.product_dtype(x, len(x))
    return x.new_empty(x.shape[0], w.shape[0]), x.new_empty(x.shape[0], a.shape[0], dtype=wide)


@torch.library.custom_op(
    "numllm::lora_linear_backward", mutates_args=(),
    schema=(
        f"(Tensor dy, Tensor? x, Tensor w, Tensor a, Tensor b, Tensor? s, Tensor scales, {_LORA}, bool[] needs) "
        "-> (Tensor, Tensor, Tensor)"
    ),
)
def _lora_backward_operator(dy: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = _lora_backward(dy, *given)
    return tuple(dy.new_empty(0) if gradient is None else gradient.contiguous() for gradient in found)


@_lora_backward_operator.register_fake
def _(
    dy: Tensor, x: Tensor | None, w: Tensor, a: Tensor, b: Tensor, *given: Any
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((dy.shape[0], w.shape[1]), dy.dtype), (a.shape, a.dtype), (b.shape, b.dtype)
    return tuple(
        dy.new_empty(shape if needed else 0, dtype=dtype if needed else dy.dtype)
        for needed, (shape, dtype) in zip(given[-1], shapes, strict=True)
    )


def _setup(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w, _, a, b, *rest = inputs
    _save(ctx, x, w, a, b, output[1], *rest)


def _gradients(ctx: FunctionCtx, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = _needs(ctx)
    found = torch.ops.numllm.lora_linear_backward(dy.contiguous(), *ctx.saved_tensors, ctx.impl, needs)
    dx, da, db = (gradient if needed else None for gradient, needed in zip(found, needs, strict=True))
    return dx, None, None, da, db, None, None, None, None, None, None


torch.library.register_autograd("numllm::lora_linear", _gradients, setup_context=_setup)


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


def _keep(x: Tensor, dropout: Tensor, seed: Tensor) -> Tensor:
    """(M, K) in x's dtype: 0 for a share dropout (M,) of a token's entries, 1 / (1 − dropout) for the others.

    The same for the same seed, shape and kind of device.
    """
    generator = torch.Generator(device=x.device).manual_seed(int(seed))
    share = dropout[:, None]
    drawn = torch.rand(x.shape, generator=generator, device=x.device)
    return torch.where(drawn < share, 0, 1 / (1 - share)).to(x.dtype)


def _down(
    x: Tensor, a: Tensor, scales: Tensor, columns: Tensor | None, rows: Tensor | None, parts: products.Parts | None
) -> Tensor:
    """(x a) ⊙ m: x (M, K), a (K, R) → (M, R)."""
    if parts is None:
        s = x @ a
        return s.mul_(scales if rows is None else torch.where(rows[:, None] == columns, scales, 0))
    s = x.new_zeros(len(x), len(scales))
    for tokens, own in parts:
        s[tokens, own] = (x[tokens] @ a[:, own]).mul_(scales[own])
    return s


def _parts(columns: Tensor | None, rows: Tensor | None, x: Tensor) -> products.Parts | None:
    """The tokens and columns of each adapter where its tokens follow on one another, as those of rows put side by side
    do: no token is multiplied with columns of another adapter then. None elsewhere, and on a GPU, which would wait.
    dA and dB are sums over all tokens all the same: zeros do not change them, other bounds of the sum would.
    """
    if rows is None or x.is_cuda:
        return None
    tokens, own = _spans(rows), _spans(columns)
    if len(dict(tokens)) < len(tokens) or len(dict(own)) < len(own):
        return None
    return [(where, dict(own).get(adapter, slice(0))) for adapter, where in tokens]


def _spans(numbers: Tensor) -> list[tuple[int, slice]]:
    """The runs of equal numbers (n,), and where each is."""
    found, counts = (part.tolist() for part in numbers.unique_consecutive(return_counts=True))
    ends = itertools.accumulate(counts)
    return [(number, slice(end - count, end)) for number, count, end in zip(found, counts, ends, strict=True)]


def _ways(impl: str, x: Tensor) -> tuple[ModuleType | None, bool]:
    """(the module of kernels or None, whether the big product is theirs too)."""
    kernels = _kernels(impl, x)
    return kernels, kernels is not None and (impl == "triton-fused" or kernels.tiles.fused(x.device))


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
    columns: Tensor | None, rows: Tensor | None, dropout: Tensor | None, seed: Tensor | None,
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
    if dropout is not None:
        if seed is None:
            raise ValueError("dropout needs a seed: () int64, on the CPU")
        _check_shape("dropout", dropout, tuple(x.shape[:-1]), "a share for each token of x")
        _check_dtype(torch.float32, dropout=dropout)
        _check_dtype(torch.int64, seed=seed)
    _check_frozen(w=w, bias=bias)
    _check_alike(x, w=w, bias=bias)
    if not (x.is_floating_point() and a.is_floating_point() and b.is_floating_point()):
        raise TypeError(f"x, a and b must be floating point, got {x.dtype}, {a.dtype} and {b.dtype}")
    _check_dtype(torch.float32, scales=scales)
    _check_dtype(torch.int32, rows=rows, columns=columns if rows is not None else None)
    for name, tensor in {"a": a, "b": b, "scales": scales, "columns": columns, "rows": rows,
                         "dropout": dropout}.items():
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
