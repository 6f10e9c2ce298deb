"""The autograd Functions against the reference, by finite differences and by torch's own autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from numllm import ops, products, reference
from numllm.ops import implementations, passes
from numllm.ops.dropout import without_dropped

SCALES = torch.tensor([2.0] * 3 + [0.7] * 2)
COLUMNS = torch.tensor([0] * 3 + [1] * 2, dtype=torch.int32)
ROWS = torch.tensor([[0, 1, -1, 1], [-1, 0, 0, 1]], dtype=torch.int32)
ORDERED = torch.tensor([[1, 1, 1, 0], [0, -1, -1, -1]], dtype=torch.int32)


def inputs(dtype: torch.dtype = torch.float64, *, size: int = 1) -> dict[str, torch.Tensor]:
    """x (2, 4, 6), w (7, 6), bias (7,), a (5, 6), b (7, 5), with K and N `size` times as large."""
    generator = torch.Generator().manual_seed(0)
    n, k = 7 * size, 6 * size
    shapes = {"x": (2, 4, k), "w": (n, k), "bias": (n,), "a": (5, k), "b": (n, 5)}
    return {
        name: (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)
        for name, shape in shapes.items()
    }


def call(v: dict[str, torch.Tensor], rows: torch.Tensor | None = ROWS, **options: object) -> torch.Tensor:
    return ops.lora_linear(v["x"], v["w"], v["bias"], v["a"], v["b"], SCALES, COLUMNS, rows, **options)


@pytest.mark.parametrize(
    "rows", [None, ROWS, ORDERED, torch.full_like(ROWS, -1)], ids=["all-on", "mixed", "ordered", "all-off"]
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_lora_linear_and_its_gradients(rows, bias) -> None:
    v = inputs()
    if not bias:
        v["bias"] = None
    trained = [v[name].requires_grad_() for name in ("x", "a", "b")]
    assert torch.autograd.gradcheck(
        lambda x, a, b: call({**v, "x": x, "a": a, "b": b}, rows), trained, eps=1e-6, atol=1e-7
    )
    flat = v["x"].detach().view(8, -1)
    choice = SCALES, COLUMNS, None if rows is None else rows.view(-1)
    y = call(v, rows)
    torch.testing.assert_close(
        y.view(8, -1), reference.lora_linear(flat, v["w"], v["bias"], v["a"], v["b"], *choice)
    )
    dy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    y.backward(dy)
    wanted = reference.lora_linear_backward(dy.view(8, -1), flat, v["w"], v["a"], v["b"], *choice)
    torch.testing.assert_close([v["x"].grad.view(8, -1), v["a"].grad, v["b"].grad], list(wanted))


def test_tokens_that_follow_on_one_another_skip_the_columns_of_others(monkeypatch) -> None:
    v = inputs(torch.float32)
    (first, one), (second, other), (_, none) = passes._parts(COLUMNS, ORDERED.view(-1), v["x"])
    assert (first, one) == (slice(0, 3), slice(3, 5)) and (second, other) == (slice(3, 5), slice(0, 3))
    assert none == slice(0) and passes._parts(COLUMNS, ROWS.view(-1), v["x"]) is None
    found = call(v, ORDERED)
    monkeypatch.setattr(passes, "_parts", lambda *_: None)
    torch.testing.assert_close(found, call(v, ORDERED))


def test_the_reference_gradients_are_those_of_its_formula() -> None:
    v = inputs()
    flat, choice = v["x"].view(8, -1).requires_grad_(), (SCALES, COLUMNS, ROWS.view(-1))
    a, b = v["a"].requires_grad_(), v["b"].requires_grad_()
    y = reference.lora_linear(flat, v["w"], v["bias"], a, b, *choice)
    dy = torch.randn_like(y)
    wanted = torch.autograd.grad(y, (flat, a, b), dy)
    torch.testing.assert_close(reference.lora_linear_backward(dy, flat, v["w"], a, b, *choice), wanted)


def test_two_adapters_in_one_call_are_each_alone() -> None:
    v = inputs()
    a, b = v["a"].requires_grad_(), v["b"].requires_grad_()
    call(v).sum().backward()
    for index in (0, 1):
        column, token = COLUMNS == index, ROWS == index
        part_a, part_b = (t.detach().clone().requires_grad_() for t in (a[column], b[:, column]))
        y = ops.lora_linear(v["x"][token], v["w"], v["bias"], part_a, part_b, SCALES[column])
        torch.testing.assert_close(call(v)[token], y)
        y.sum().backward()
        torch.testing.assert_close(a.grad[column], part_a.grad)
        torch.testing.assert_close(b.grad[:, column], part_b.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("native", [True, False], ids=["native", "widened"])
def test_master_weights_in_fp32(monkeypatch, dtype, native) -> None:
    """fp32 factors on a 16-bit model, with and without the CPU's own 16-bit products."""
    monkeypatch.setattr(products, "product_dtype", lambda tensor, _: dtype if native else torch.float32)
    monkeypatch.setattr(products, "WIDE_BLOCK", 64)  # several blocks
    v = inputs(dtype, size=5)
    exact = {name: value.double() for name, value in v.items()}
    a, b = v["a"].float().requires_grad_(), v["b"].float().requires_grad_()
    x = v["x"].requires_grad_()
    y = call({**v, "a": a, "b": b})
    assert y.dtype == x.dtype == dtype
    dy = torch.randn_like(y)
    y.backward(dy)
    assert a.grad.dtype == b.grad.dtype == torch.float32

    choice = SCALES, COLUMNS, ROWS.view(-1)

    def answers(v: dict[str, torch.Tensor], dy: torch.Tensor) -> list[torch.Tensor]:
        flat = v["x"].detach().view(8, -1)
        y = reference.lora_linear(flat, v["w"], v["bias"], v["a"], v["b"], *choice)
        gradients = reference.lora_linear_backward(dy.view(8, -1), flat, v["w"], v["a"], v["b"], *choice)
        return [y, *gradients]

    got = [y.detach().view(8, -1), x.grad.view(8, -1), a.grad, b.grad]
    for value, true, rough in zip(got, answers(exact, dy.double()), answers(v, dy), strict=True):
        allowed = (rough.double() - true).abs().max() + torch.finfo(dtype).eps * true.abs().max()
        assert (value.double() - true).abs().max() <= allowed


@pytest.mark.parametrize("needed", [(), ("x",), ("a",), ("b",), ("x", "a"), ("a", "b"), ("x", "b")], ids="+".join)
def test_only_the_gradients_asked_for(needed) -> None:
    v = inputs()
    for name in needed:
        v[name].requires_grad_()
    y = call(v)
    assert y.requires_grad == bool(needed)
    if needed:
        y.sum().backward()
    assert [name for name in v if v[name].grad is not None] == list(needed)


@pytest.mark.parametrize(("trained", "kept"), [("x", False), ("b", False), ("a", True)])
def test_the_input_is_kept_only_for_the_gradient_of_a(trained, kept) -> None:
    v = inputs()
    v[trained].requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        call(v)
    assert (v["x"].data_ptr() in saved) == kept


def test_empty_batch() -> None:
    v = inputs()
    v["x"] = v["x"][:0].requires_grad_()
    a = v["a"].requires_grad_()
    y = call(v, ROWS[:0])
    assert y.shape == (0, 4, 7)
    y.sum().backward()
    assert v["x"].grad.shape == (0, 4, 6) and not a.grad.any()


def test_a_second_derivative_is_refused() -> None:
    v = inputs()
    v["x"].requires_grad_()
    (gradient,) = torch.autograd.grad(call(v).square().sum(), v["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


WRONG = {
    "K": ({"a": torch.zeros(5, 4).double()}, ValueError, r"a must be \(5, 6\)"),
    "N": ({"b": torch.zeros(6, 5).double()}, ValueError, r"b must be \(7, 5\)"),
    "bias": ({"bias": torch.zeros(6).double()}, ValueError, r"bias must be \(7,\)"),
    "rank 0": ({"a": torch.zeros(0, 6).double(), "b": torch.zeros(7, 0).double()}, ValueError, "scales|rank 0"),
    "dtype of w": ({"w": torch.zeros(7, 6)}, TypeError, "w must be of x's dtype"),
    "trained w": ({"w": torch.zeros(7, 6).double().requires_grad_()}, ValueError, "w must be frozen"),
    "trained bias": ({"bias": torch.zeros(7).double().requires_grad_()}, ValueError, "bias must be frozen"),
    "integers": ({"a": torch.zeros(5, 6).int()}, TypeError, "floating point"),
    "device": ({"a": torch.zeros(5, 6, device="meta").double()}, ValueError, "on x's device"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused(name) -> None:
    changes, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call({**inputs(), **changes})


def test_wrong_rows_are_refused() -> None:
    v = inputs()
    with pytest.raises(ValueError, match=r"rows must be \(2, 4\)"):
        call(v, ROWS[:1])
    with pytest.raises(TypeError, match="rows must be torch.int32"):
        call(v, ROWS.long())
    with pytest.raises(ValueError, match="rows needs columns"):
        ops.lora_linear(v["x"], v["w"], None, v["a"], v["b"], SCALES, None, ROWS)
    with pytest.raises(TypeError, match="scales must be torch.float32"):
        ops.lora_linear(v["x"], v["w"], None, v["a"], v["b"], SCALES.double())


def test_an_implementation_that_cannot_run_is_refused(monkeypatch) -> None:
    v = inputs(torch.float32)
    with pytest.raises(ValueError, match="impl must be one of auto, torch"):
        call(v, impl="fast")
    pytest.importorskip("triton")
    if not implementations.interpreted():
        with pytest.raises(ValueError, match="takes CUDA tensors, got cpu; pass impl='torch'"):
            call(v, impl="triton")
    with pytest.raises(TypeError, match="takes fp32, fp16 or bf16, got torch.float64"):
        call(inputs(), impl="triton")
    monkeypatch.setattr(implementations, "load_kernels", lambda family: None)
    with pytest.raises(ValueError, match="needs the package triton"):
        call(v, impl="triton")


def test_dropout_is_the_gradient_of_what_was_computed() -> None:
    v = inputs()
    seed, dropout = torch.tensor(11), torch.tensor([[0.5, 0.5, 0.0, 0.25], [0.0, 0.5, 0.5, 0.5]])
    trained = [v[name].requires_grad_() for name in ("x", "a", "b")]
    assert torch.autograd.gradcheck(
        lambda x, a, b: call({**v, "x": x, "a": a, "b": b}, dropout=dropout, seed=seed), trained, eps=1e-6, atol=1e-7
    )
    flat, shares = v["x"].view(8, -1), dropout.view(-1)
    z = (~reference.dropped(8, 6, shares, 11)).double()
    assert 0 < z.mean() < 1
    expected = reference.lora_linear(
        flat, v["w"], v["bias"], v["a"], v["b"], SCALES, COLUMNS, ROWS.view(-1), shares, z
    )
    torch.testing.assert_close(call(v, dropout=dropout, seed=seed).view(8, -1), expected)
    assert torch.equal(call(v, dropout=torch.zeros(2, 4), seed=seed), call(v))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**62 + 12345678901, 2**63 - 1])
def test_dropout_drops_its_share_and_nothing_is_like_anything_else(seed) -> None:
    shares = torch.tensor([0.0, 0.1, 0.5, 0.9]).repeat(100)
    kept = without_dropped(torch.ones(400, 3000), shares, torch.tensor(seed))
    assert torch.equal(kept == 0, reference.dropped(400, 3000, shares, seed))
    means = kept.view(100, 4, 3000).mean((0, 2))
    assert torch.allclose(means, 1 - shares[:4], atol=0.01) and means[0] == 1
    signs = 2 * kept[2::4] - 1  # of 300,000 coins
    for product in (signs[:-1] * signs[1:], signs[:, :-1] * signs[:, 1:], signs[:-1, :-1] * signs[1:, 1:]):
        assert abs(product.mean()) < 5 / product.numel() ** 0.5
    square = signs[:50, :1500] * signs[50:, :1500] * signs[:50, 1500:] * signs[50:, 1500:]
    assert abs(square.mean()) < 5 / square.numel() ** 0.5
    other = without_dropped(torch.ones(400, 3000), shares, torch.tensor(seed ^ 4))
    assert abs(((2 * other[2::4] - 1) * signs).mean()) < 5 / signs.numel() ** 0.5


def test_dropout_needs_a_seed_and_a_share_for_each_token() -> None:
    v = inputs()
    with pytest.raises(ValueError, match="dropout needs a seed"):
        call(v, dropout=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="a share for each token"):
        call(v, dropout=torch.zeros(8), seed=torch.tensor(0))


@pytest.mark.parametrize("dropped", [False, True], ids=["plain", "dropout"])
def test_a_compiler_sees_one_operator(dropped) -> None:
    v = inputs(torch.float32)
    more = {"dropout": torch.full((2, 4), 0.5), "seed": torch.tensor(5)} if dropped else {}
    trained = [v[name].requires_grad_() for name in ("x", "a", "b")]
    whole = torch.compile(lambda x, a, b: call({**v, "x": x, "a": a, "b": b}, **more).sin(), backend="aot_eager",
                          fullgraph=True)
    found, expected = whole(*trained), call(v, **more).sin()
    assert torch.equal(found, expected)
    dy = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    wanted = torch.autograd.grad(expected, trained, dy)
    for ours, theirs in zip(torch.autograd.grad(found, trained, dy), wanted, strict=True):
        assert torch.equal(ours, theirs)
    # Only what is trained gets a gradient.
    frozen = torch.compile(lambda b: call({**v, "x": v["x"].detach(), "a": v["a"].detach(), "b": b}, **more),
                           backend="aot_eager", fullgraph=True)
    (db,) = torch.autograd.grad(frozen(v["b"]), v["b"], dy)
    (wanted,) = torch.autograd.grad(call({**v, "x": v["x"].detach(), "a": v["a"].detach()}, **more), v["b"], dy)
    assert torch.equal(db, wanted)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("wide", [True, False], ids=["avx512", "other"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(6,), (0, 6), (1, 6), (2, 6), (4, 1, 6), (2, 3, 6), (8, 6), (33, 6), (64, 6), (65, 6)], ids=str
)
@pytest.mark.parametrize("outputs", [4, 6, 40])
def test_linears_of_a_few_rows(outputs, shape, dtype, wide, bias, monkeypatch) -> None:
    monkeypatch.setattr(products, "AVX512", wide)
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(size, generator=generator).to(dtype) for size in (shape, (outputs, 6), (outputs,)))
    b = b if bias else None
    exact = F.linear(x.double(), w.double(), None if b is None else b.double())
    y = products.linear(x, w, b)
    own = max((F.linear(x, w, b).double() - exact).abs().flatten().tolist(), default=0.0)
    assert y.dtype == dtype and y.is_contiguous() and y.shape == (*shape[:-1], outputs)
    rounding = torch.finfo(dtype).eps * exact.abs().clamp(min=1)
    assert ((y.double() - exact).abs() <= own + rounding).all()
    y = products.linear(x.requires_grad_(), w, b)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], w.sum(0).expand(shape))
