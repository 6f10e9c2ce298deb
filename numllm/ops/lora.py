"""LoRA linears that share their input, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from . import passes
from .checks import check_alike, check_device, check_dtype, check_frozen, check_shape


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
    1 − dropout; x̃ is x where it is None. Which entries is a function of seed () int64 (`reference.dropped`), so
    nothing of x̃ is kept: backward makes it again.
    → (..., N) in x's dtype. Gradients: x, a, b; none is formed that is not asked for. w and bias are frozen. Kept
    for backward: x where a asks for its gradient, and the R columns of (x̃ aᵀ) ⊙ m where b does.

    ValueError: shapes or devices that do not fit, w or bias that requires a gradient, an impl that cannot run
    here. TypeError: a wrong dtype.
    """
    return lora_linears(x, [w], [bias], a, [b], scales, columns, rows, impl, dropout=dropout, seed=seed)[0]


def lora_linears(
    x: Tensor, ws: Sequence[Tensor], biases: Sequence[Tensor | None], a: Tensor, bs: Sequence[Tensor], scales: Tensor,
    columns: Tensor | None = None, rows: Tensor | None = None, impl: str = "auto", *,
    dropout: Tensor | None = None, seed: Tensor | None = None, s: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Several `lora_linear`s of one x, which the adapters read once: q, k and v, or gate and up.

    ws[i] (Nᵢ, K), biases[i] (Nᵢ,) | None, bs[i] (Nᵢ, Rᵢ); a (ΣRᵢ, K), scales and columns (ΣRᵢ,) are those of all
    linears stacked in their order. With s = (x̃ aᵀ) ⊙ m, one product, and sᵢ linear i's columns of it,

        yᵢ = x wᵢᵀ + biasᵢ + sᵢ bᵢᵀ     dX = Σ dYᵢ wᵢ + ([dY₁ b₁ …] ⊙ m) a     dA = ([dY₁ b₁ …] ⊙ m)ᵀ x̃

    where dX is summed by the products themselves and dA is one product. → yᵢ (..., Nᵢ). All else as in `lora_linear`.
    s (..., ΣRᵢ): (x aᵀ) ⊙ m, rounded once, where what made x has made it (`producers`); not with dropout. No gradient
    goes through it: dX and dA are those of the formula.
    """
    _check(x, ws, biases, a, bs, scales, columns, rows, dropout, seed)
    flat = x.reshape(-1, x.shape[-1])
    if s is not None:
        _check_s(s, x, a, dropout, passes.product_dtype(impl, flat))
        s = s.reshape(-1, s.shape[-1])
    if rows is None:
        columns = None
    else:
        rows, columns = rows.reshape(-1).contiguous(), columns.contiguous()
    if dropout is not None:
        dropout = dropout.reshape(-1).contiguous()
    if any(bias is not None for bias in biases):
        biases = [w.new_zeros(len(w)) if bias is None else bias for w, bias in zip(ws, biases, strict=True)]
    else:
        biases = []
    choice = scales.contiguous(), columns, rows, dropout, seed
    # A compiler sees one operator; without one, the Function's way is shorter.
    if torch.compiler.is_compiling():
        ys, _ = torch.ops.numllm.lora_linears(flat, list(ws), list(biases), a, list(bs), s, *choice, impl)
    else:
        ys = _LoRALinears.apply(flat, a, s, *choice, impl, len(ws), *ws, *bs, *biases)
    return tuple(y.view(*x.shape[:-1], len(w)) for y, w in zip(ys, ws, strict=True))


def reads_once(x: Tensor, impl: str) -> bool:
    """Whether linears of one x are better computed together: on a GPU, where reading x is what adapters cost.

    A CPU is bound by the frozen products: a step gains nothing that can be seen (kernels/README.md).
    """
    return x.is_cuda or impl.startswith("triton")


class _LoRALinears(torch.autograd.Function):
    """`parts`: ws, bs, and as many biases or none."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, a: Tensor, s: Tensor | None, scales: Tensor, columns: Tensor | None,
        rows: Tensor | None, dropout: Tensor | None, seed: Tensor | None, impl: str, count: int, *parts: Tensor,
    ) -> tuple[Tensor, ...]:
        ws, bs, biases = parts[:count], parts[count : 2 * count], parts[2 * count :]
        choice = scales, columns, rows, dropout, seed
        ys, s = passes.forward(x, ws, biases, a, bs, s, *choice, impl)
        needs = ctx.needs_input_grad
        _save(ctx, x, ws, a, bs, s, choice, impl, (needs[0], needs[1], needs[10 + count : 10 + 2 * count]))
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *dys: Tensor) -> tuple[Tensor | None, ...]:
        dx, da, dbs = passes.backward(dys, *_saved(ctx))
        frozen = [None] * len(dbs)
        biases = [None] * (len(ctx.needs_input_grad) - 10 - 2 * len(dbs))
        return dx, da, *[None] * 8, *frozen, *dbs, *biases


def _save(
    ctx: FunctionCtx, x: Tensor, ws: Sequence[Tensor], a: Tensor, bs: Sequence[Tensor], s: Tensor,
    choice: Sequence[Tensor | None], impl: str, needs: tuple[bool, bool, Sequence[bool]],
) -> None:
    """Keeps what the gradients that are asked for take. needs: whether those of x, a and each b are."""
    _, needs_a, needs_bs = needs
    ctx.impl, ctx.needs = impl, needs
    ctx.save_for_backward(x if needs_a else None, a, s if any(needs_bs) else None, *choice, *ws, *bs)


def _saved(ctx: FunctionCtx) -> tuple[Any, ...]:
    """What `passes.backward` takes after the gradients."""
    x, a, s, *rest = ctx.saved_tensors
    choice, ws, bs = rest[:5], rest[5 : -len(ctx.needs[2])], rest[-len(ctx.needs[2]) :]
    return x, ws, a, bs, s, *choice, ctx.impl, *ctx.needs


_CHOICE = "Tensor scales, Tensor? columns, Tensor? rows, Tensor? dropout, Tensor? seed, str impl"


@torch.library.custom_op(
    "numllm::lora_linears", mutates_args=(),
    schema=(
        f"(Tensor x, Tensor[] ws, Tensor[] biases, Tensor a, Tensor[] bs, Tensor? s, {_CHOICE}) "
        "-> (Tensor[], Tensor)"
    ),
)
def _operator(
    x: Tensor, ws: Sequence[Tensor], biases: Sequence[Tensor], a: Tensor, bs: Sequence[Tensor], s: Tensor | None,
    *given: Any
) -> tuple[list[Tensor], Tensor]:
    """(ys, s; empty where it was given)."""
    ys, made = passes.forward(x, ws, biases, a, bs, s, *given)
    return ys, made if s is None else x.new_empty(0)


@_operator.register_fake
def _(
    x: Tensor, ws: Sequence[Tensor], biases: Sequence[Tensor], a: Tensor, bs: Sequence[Tensor], s: Tensor | None,
    *given: Any
) -> tuple[list[Tensor], Tensor]:
    shape = (x.shape[0], a.shape[0]) if s is None else (0,)
    dtype = passes.product_dtype(given[-1], x) if s is None else x.dtype
    return [x.new_empty(x.shape[0], w.shape[0]) for w in ws], x.new_empty(shape, dtype=dtype)


@torch.library.custom_op(
    "numllm::lora_linears_backward", mutates_args=(),
    schema=(
        f"(Tensor[] dys, Tensor? x, Tensor[] ws, Tensor a, Tensor[] bs, Tensor? s, {_CHOICE}, "
        "bool needs_x, bool needs_a, bool[] needs_bs) -> (Tensor, Tensor, Tensor[])"
    ),
)
def _backward_operator(dys: Sequence[Tensor], *given: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    def found(gradient: Tensor | None) -> Tensor:
        return dys[0].new_empty(0) if gradient is None else gradient.contiguous()

    dx, da, dbs = passes.backward(dys, *given)
    return found(dx), found(da), [found(db) for db in dbs]


@_backward_operator.register_fake
def _(
    dys: Sequence[Tensor], x: Tensor | None, ws: Sequence[Tensor], a: Tensor, bs: Sequence[Tensor], *given: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    def fake(needed: bool, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return dys[0].new_empty(shape, dtype=dtype) if needed else dys[0].new_empty(0)

    *_, needs_x, needs_a, needs_bs = given
    return (
        fake(needs_x, (dys[0].shape[0], ws[0].shape[1]), dys[0].dtype), fake(needs_a, a.shape, a.dtype),
        [fake(needed, b.shape, b.dtype) for needed, b in zip(needs_bs, bs, strict=True)],
    )


def _setup(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[list[Tensor], Tensor]) -> None:
    x, ws, biases, a, bs, s, *choice, impl = inputs
    first, *rest = ctx.needs_input_grad  # of the lists' tensors one after the other
    rest = rest[len(ws) + len(biases) :]
    s = output[1] if s is None else s
    _save(ctx, x, ws, a, bs, s, choice, impl, (first, rest[0], rest[1 : 1 + len(bs)]))
    ctx.biases = len(biases)


def _gradients(ctx: FunctionCtx, dys: list[Tensor], _: Tensor | None) -> tuple[Any, ...]:
    needs_x, needs_a, needs_bs = ctx.needs
    dys = [dy.contiguous() for dy in dys]
    dx, da, dbs = torch.ops.numllm.lora_linears_backward(dys, *_saved(ctx))
    dbs = [db if needed else None for db, needed in zip(dbs, needs_bs, strict=True)]
    frozen = [None] * len(dbs)
    return dx if needs_x else None, frozen, [None] * ctx.biases, da if needs_a else None, dbs, *[None] * 7


torch.library.register_autograd("numllm::lora_linears", _gradients, setup_context=_setup)


def _check(
    x: Tensor, ws: Sequence[Tensor], biases: Sequence[Tensor | None], a: Tensor, bs: Sequence[Tensor], scales: Tensor,
    columns: Tensor | None, rows: Tensor | None, dropout: Tensor | None, seed: Tensor | None,
) -> None:
    if not ws or not len(ws) == len(biases) == len(bs):
        raise ValueError(
            f"ws, biases and bs must be of as many linears, at least one; got {len(ws)}, {len(biases)} and {len(bs)}"
        )
    names = [""] if len(ws) == 1 else [f"[{index}]" for index in range(len(ws))]
    if x.dim() == 0 or a.dim() != 2 or any(w.dim() != 2 for w in ws) or any(b.dim() != 2 for b in bs):
        raise ValueError(
            "x must be (..., K), w (N, K), a (R, K) and b (N, R), got "
            f"{tuple(x.shape)}, {', '.join(str(tuple(t.shape)) for t in (*ws, a, *bs))}"
        )
    k, r = ws[0].shape[1], a.shape[0]
    check_shape("x", x, (*x.shape[:-1], k), "K of w")
    check_shape("a", a, (r, k), "K of w")
    if r == 0:
        raise ValueError("a must have at least one row, got rank 0; call torch.nn.functional.linear instead")
    own = [r] if len(bs) == 1 else passes.ranks(bs)
    if sum(own) != r or 0 in own:
        raise ValueError(f"a must have a row for each column of bs, of which every one has some; got {r} for {own}")
    for name, w, bias, b, columns_of_b in zip(names, ws, biases, bs, own, strict=True):
        check_shape(f"w{name}", w, (len(w), k), "K of x")
        check_shape(f"b{name}", b, (len(w), columns_of_b), "N of w, R of a")
        if bias is not None:
            check_shape(f"bias{name}", bias, (len(w),), "N of w")
        check_frozen(**{f"w{name}": w, f"bias{name}": bias})
        check_alike(x, **{f"w{name}": w, f"bias{name}": bias})
        check_device(x, **{f"b{name}": b})
        if not b.is_floating_point():
            raise TypeError(f"b{name} must be floating point, got {b.dtype}")
    check_shape("scales", scales, (r,), "R of a")
    if rows is not None:
        if columns is None:
            raise ValueError("rows needs columns: the adapter of each of a's rows, int32")
        check_shape("columns", columns, (r,), "R of a")
        check_shape("rows", rows, tuple(x.shape[:-1]), "an adapter for each token of x")
        check_dtype(torch.int32, rows=rows, columns=columns)
        check_device(x, rows=rows, columns=columns)
    if dropout is not None:
        if seed is None:
            raise ValueError("dropout needs a seed: () int64, on the CPU")
        check_shape("dropout", dropout, tuple(x.shape[:-1]), "a share for each token of x")
        check_dtype(torch.float32, dropout=dropout)
        check_dtype(torch.int64, seed=seed)
    if not (x.is_floating_point() and a.is_floating_point()):
        raise TypeError(f"x and a must be floating point, got {x.dtype} and {a.dtype}")
    check_dtype(torch.float32, scales=scales)
    check_device(x, a=a, scales=scales, dropout=dropout)


def _check_s(s: Tensor, x: Tensor, a: Tensor, dropout: Tensor | None, dtype: torch.dtype) -> None:
    if dropout is not None:
        raise ValueError("s is of an x without dropout; leave it out where dropout is given")
    check_shape("s", s, (*x.shape[:-1], len(a)), "tokens of x, R of a")
    check_dtype(dtype, s=s)
    check_device(x, s=s)
    check_frozen(s=s)
