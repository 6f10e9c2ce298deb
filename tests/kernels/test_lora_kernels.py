"""The LoRA kernels against the reference: awkward shapes, poisoned memory, torch's own error as the tolerance.

Without a GPU they run in Triton's interpreter, whose bf16 products are wrong; bf16 is in test_gpu.py.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from lora_cases import SEED, Case, check, expected, make_case
from torch import Tensor

from numllm import ops
from numllm.ops.dropout import words

SHAPES = [
    (1, 5, 3, (4,)),
    (16, 64, 32, (16,)),
    (37, 50, 70, (4,)),
    (70, 33, 130, (8, 4)),
    (33, 90, 1100, (5, 12)),  # K is summed in pieces
    (21, 600, 40, (8,)),  # N is
    (300, 40, 24, (16,)),  # M is
    (18, 40, 48, (16, 64)),  # more than one block of ranks
    (9, 20, 24, (256,)),
]
SHAPE_IDS = ["x".join(map(str, shape[:3])) + "-r" + "+".join(map(str, shape[3])) for shape in SHAPES]
DTYPES = [torch.float32, torch.float16]

pytestmark = pytest.mark.usefixtures("poisoned")


def run(kernels: ModuleType, case: Case) -> dict[str, Tensor]:
    """y and the gradients by the kernels alone."""
    choice = case.scales, case.columns, case.rows, case.shares
    drop = None if case.shares is None else words(torch.tensor(SEED))
    s = kernels.down(case.x, case.a, *choice, drop)
    y = kernels.linear(case.x, case.w, case.bias, s, case.b)
    ds, db = kernels.down_outer(case.dy, case.b, s, *choice)
    if drop is None:
        dx = kernels.linear(case.dy, case.w.T, None, ds, case.a.T)
    else:
        dx = kernels.up(ds, case.a.T, case.shares, drop).addmm_(case.dy, case.w)
    return {"y": y, "dx": dx, "da": kernels.outer(ds, case.x, case.shares, drop), "db": db}


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("rows", [None, "none", "mixed"], ids=["all-on", "all-off", "mixed"])
def test_forward_and_gradients(kernels, device, shape, dtype, rows) -> None:
    case = make_case(*shape, dtype=dtype, device=device, rows=rows, bias=rows == "mixed")
    check(run(kernels, case), case)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=SHAPE_IDS[:4])
def test_parts_of_larger_and_turned_matrices(kernels, device, shape, dtype) -> None:
    case = make_case(*shape, dtype=dtype, device=device, rows="mixed", bias=True, strided=True)
    assert not case.x.is_contiguous()
    check(run(kernels, case), case)


@pytest.mark.parametrize("shape", SHAPES[2:], ids=SHAPE_IDS[2:])
def test_dropout(kernels, device, shape) -> None:
    """The kernels drop what the reference drops, forward and backward, and nothing where the share is 0."""
    case = make_case(*shape, dtype=torch.float16, device=device, rows="mixed", dropout=True)
    check(run(kernels, case), case)


def test_tiles_for_many_rows(kernels, device) -> None:
    case = make_case(1030, 70, 40, (8, 8), dtype=torch.float16, device=device, rows="mixed")
    settings = kernels.tiles.choose("down_outer", case.x, 16)
    assert kernels.tiles.one_read(settings["BLOCK_M"], 16, 2)
    check(run(kernels, case), case)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16"])
def test_one_read_of_dy_and_two_agree(kernels, device, dtype, monkeypatch) -> None:
    case = make_case(150, 300, 20, (16,), dtype=dtype, device=device, rows="mixed")
    choice = case.scales, case.columns, case.rows
    s = kernels.down(case.x, case.a, *choice)
    for one_read in (True, False):
        monkeypatch.setattr(kernels.tiles, "one_read", lambda *_, answer=one_read: answer)
        ds, db = kernels.down_outer(case.dy, case.b, s, *choice)
        assert db.dtype == torch.float32 and ds.dtype == dtype
        check({"db": db, "da": kernels.outer(ds, case.x)}, case)


@pytest.mark.parametrize("impl", ["triton", "triton-fused", "torch"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0), (3, 5)], ids=["one", "row of 1", "none", "2 of none", "3-D"])
def test_tokens_in_any_shape(by_kernels, device, impl, shape) -> None:
    """Any leading dimensions, contiguous or not, with dropout; and x is what it was."""
    m = torch.Size(shape).numel()
    case = make_case(m, 11, 14, (4,), dtype=torch.float32, device=device, rows="none", dropout=True)
    case.rows = torch.zeros(m, dtype=torch.int32, device=device)
    room = torch.zeros(*shape, 14, 2, device=device)
    x = room[..., 0].copy_(case.x.view(*shape, 14)).detach().requires_grad_()
    assert x.numel() < 2 or not x.is_contiguous()
    before = x.detach().clone()
    a, b = case.a.clone().requires_grad_(), case.b.clone().requires_grad_()
    y = ops.lora_linear(
        x, case.w, case.bias, a, b, case.scales, case.columns, case.rows.view(shape), impl=impl,
        dropout=case.shares.view(shape), seed=torch.tensor(SEED),
    )
    assert y.shape == (*shape, 11)
    found = torch.autograd.grad(y, (x, a, b), case.dy.view(y.shape), retain_graph=True)
    again = torch.autograd.grad(y, (x, a, b), case.dy.view(y.shape))
    assert torch.equal(x, before) and all(map(torch.equal, found, again))
    dx, da, db = found
    check({"y": y.detach().view(m, 11), "dx": dx.reshape(m, 14), "da": da, "db": db}, case)


def test_no_tokens(kernels, device) -> None:
    case = make_case(0, 6, 5, (4,), dtype=torch.float32, device=device, rows="mixed")
    got = run(kernels, case)
    assert not got["da"].any() and not got["db"].any()
    check(got, case)


def test_what_is_off_stays_off_beside_an_infinity(kernels, device) -> None:
    case = make_case(20, 8, 6, (8, 8), dtype=torch.float32, device=device, rows="mixed")
    case.a.abs_()
    case.x[case.rows == -1] = float("inf")
    s = kernels.down(case.x, case.a, case.scales, case.columns, case.rows)
    assert not s[case.rows == -1].any()
    assert torch.isfinite(s).all()


def test_same_bits_twice(kernels, device) -> None:
    case = make_case(140, 40, 530, (8, 8), dtype=torch.float32, device=device, rows="mixed", bias=True)
    first, second = run(kernels, case), run(kernels, case)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("impl", ["triton", "triton-fused"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16"])
@pytest.mark.parametrize(("rows", "dropout"), [(None, False), ("mixed", False), ("mixed", True)],
                         ids=["all-on", "mixed", "dropout"])
def test_ops_through_the_kernels(by_kernels, device, impl, dtype, rows, dropout) -> None:
    case = make_case(24, 40, 36, (8, 4), dtype=dtype, device=device, rows=rows, bias=True, dropout=dropout)
    drop = {"dropout": case.shares.view(4, 6), "seed": torch.tensor(SEED)} if dropout else {}
    x, a, b = (value.detach().float().requires_grad_() for value in (case.x, case.a, case.b))
    low = x.to(dtype).view(4, 6, -1)
    turns = None if case.rows is None else case.rows.view(4, 6)
    y = ops.lora_linear(low, case.w, case.bias, a, b, case.scales, case.columns, turns, impl=impl, **drop)
    y.backward(case.dy.view(4, 6, -1))
    assert y.dtype == dtype and a.grad.dtype == torch.float32
    check({"y": y.detach().view(24, -1), "dx": x.grad, "da": a.grad, "db": b.grad}, case)


@pytest.mark.parametrize("impl", ["triton", "triton-fused"])
@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
def test_linears_of_one_input(by_kernels, device, impl, dropout) -> None:
    """Three linears together are each alone, and x's gradient is the sum of theirs."""
    cases = [
        make_case(20, n, 36, ranks, dtype=torch.float16, device=device, rows="mixed", bias=n == 24, dropout=dropout)
        for n, ranks in ((40, (8, 4)), (24, (4, 4)), (7, (1, 2)))
    ]
    first = cases[0]
    for case in cases:
        case.x = first.x
    x = first.x.clone().requires_grad_()
    a = torch.cat([case.a for case in cases]).float().requires_grad_()
    bs = [case.b.float().requires_grad_() for case in cases]
    drop = {"dropout": first.shares, "seed": torch.tensor(SEED)} if dropout else {}
    ys = ops.lora_linears(
        x, [case.w for case in cases], [case.bias for case in cases], a, bs,
        torch.cat([case.scales for case in cases]), torch.cat([case.columns for case in cases]), first.rows, impl=impl,
        **drop,
    )
    torch.autograd.backward(ys, [case.dy for case in cases])
    das = a.grad.split([len(case.a) for case in cases])
    for case, y, da, b in zip(cases, ys, das, bs, strict=True):
        check({"y": y.detach(), "da": da, "db": b.grad}, case)
    exact = sum(expected(case.to(torch.float64))["dx"] for case in cases)
    rough = sum(expected(case)["dx"] for case in cases)
    allowed = (rough.double() - exact).abs().max() + 4 * torch.finfo(torch.float16).eps * exact.abs().max()
    assert (x.grad.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("needed", [(), ("x",), ("a",), ("b",), ("x", "a"), ("a", "b"), ("x", "b")], ids="+".join)
def test_only_the_gradients_asked_for(by_kernels, device, needed) -> None:
    case = make_case(20, 24, 20, (8,), dtype=torch.float32, device=device, rows="mixed")
    inputs = {name: getattr(case, name).clone().requires_grad_(name in needed) for name in ("x", "a", "b")}
    y = ops.lora_linear(
        inputs["x"], case.w, None, inputs["a"], inputs["b"], case.scales, case.columns, case.rows, impl="triton"
    )
    assert y.requires_grad == bool(needed)
    if needed:
        y.backward(case.dy)
    check({"y": y.detach(), **{f"d{name}": inputs[name].grad for name in needed}}, case)
    assert all(inputs[name].grad is None for name in inputs if name not in needed)


@pytest.mark.parametrize("programs", [1, 7, 128, 500])
@pytest.mark.parametrize("extent", [1, 64, 65, 1000, 18944])
def test_pieces_cover_the_sum_once(kernels, programs, extent) -> None:
    pieces, length = kernels.sums.pieces(programs, extent, 64)
    assert length % 64 == 0
    assert (pieces - 1) * length < extent <= pieces * length
