"""Several LoRA linears of one input: each as alone, x's gradient their sum, one operator for a compiler."""

from __future__ import annotations

import pytest
import torch

from numllm import ops, products

SIZES = ((7, 5), (3, 2), (4, 1))
"""(N, R) of the linears; x is (2, 4, 6)."""
RANKS = sum(r for _, r in SIZES)
COLUMNS = torch.tensor([0, 0, 0, 1, 1, 0, 1, 1], dtype=torch.int32)
SCALES = torch.tensor([2.0, 2.0, 2.0, 0.7, 0.7, 1.5, 0.3, 0.3])
ROWS = torch.tensor([[0, 1, -1, 1], [-1, 0, 0, 1]], dtype=torch.int32)
DROPOUT = {"dropout": torch.full((2, 4), 0.5), "seed": torch.tensor(5)}


def inputs(dtype: torch.dtype = torch.float64, *, biased: str = "all") -> dict[str, list[torch.Tensor | None]]:
    """x, ws, biases, a, bs."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    with_bias = {"all": (True, True, True), "some": (True, False, True), "none": (False, False, False)}[biased]
    return {
        "x": [draw(2, 4, 6)], "ws": [draw(n, 6) for n, _ in SIZES],
        "biases": [draw(n) if has else None for (n, _), has in zip(SIZES, with_bias, strict=True)],
        "a": [draw(RANKS, 6)], "bs": [draw(n, r) for n, r in SIZES],
    }


def together(v: dict[str, list], rows: torch.Tensor | None = ROWS, **options: object) -> tuple[torch.Tensor, ...]:
    return ops.lora_linears(*v["x"], v["ws"], v["biases"], *v["a"], v["bs"], SCALES, COLUMNS, rows, **options)


def apart(v: dict[str, list], rows: torch.Tensor | None = ROWS, **options: object) -> tuple[torch.Tensor, ...]:
    ranks = [r for _, r in SIZES]
    parts = zip(
        v["ws"], v["biases"], v["a"][0].split(ranks), v["bs"], SCALES.split(ranks), COLUMNS.split(ranks), strict=True
    )
    return tuple(ops.lora_linear(*v["x"], *part, rows, **options) for part in parts)


def trained(v: dict[str, list]) -> list[torch.Tensor]:
    return [tensor.requires_grad_() for tensor in (*v["x"], *v["a"], *v["bs"])]


@pytest.mark.parametrize("rows", [None, ROWS], ids=["all-on", "mixed"])
@pytest.mark.parametrize("biased", ["all", "some", "none"])
@pytest.mark.parametrize("drop", [{}, DROPOUT], ids=["plain", "dropout"])
def test_together_is_apart(rows, biased, drop) -> None:
    v = inputs(biased=biased)
    found, expected = together(v, rows, **drop), apart(v, rows, **drop)
    torch.testing.assert_close(found, expected)
    wanted = trained(v)
    generator = torch.Generator().manual_seed(1)
    dys = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in found]
    gradients = [torch.autograd.grad(way(v, rows, **drop), wanted, dys) for way in (together, apart)]
    torch.testing.assert_close(*gradients)


def test_finite_differences() -> None:
    v = inputs()

    def way(x: torch.Tensor, a: torch.Tensor, *bs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return together({**v, "x": [x], "a": [a], "bs": list(bs)}, **DROPOUT)

    assert torch.autograd.gradcheck(way, trained(v), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_in_16_bits_with_fp32_factors(monkeypatch, dtype) -> None:
    monkeypatch.setattr(products, "WIDE_BLOCK", 8)
    v = inputs(dtype)
    v |= {"a": [t.float() for t in v["a"]], "bs": [t.float() for t in v["bs"]]}
    exact = {name: [t.detach().double() for t in ts] for name, ts in v.items()}
    dys = [torch.ones(2, 4, n, dtype=dtype) for n, _ in SIZES]
    ways = []
    for given, ds in ((v, dys), (exact, [dy.double() for dy in dys])):
        wanted = trained(given)
        ys = together(given)
        ways.append((*(y.detach() for y in ys), *torch.autograd.grad(ys, wanted, ds)))
    assert [t.dtype for t in ways[0]] == [*[dtype] * 4, *[torch.float32] * 4]
    for got, want in zip(*ways, strict=True):
        assert (got.double() - want).abs().max() <= 8 * torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize("needed", ["x", "a", "bs", "one b"])
def test_only_the_gradients_asked_for(needed) -> None:
    v = inputs()
    asked = {"x": v["x"], "a": v["a"], "bs": v["bs"], "one b": v["bs"][1:2]}[needed]
    for tensor in asked:
        tensor.requires_grad_()
    sum(y.sum() for y in together(v)).backward()
    for tensor in (*v["x"], *v["a"], *v["bs"]):
        assert (tensor.grad is not None) == any(tensor is other for other in asked)


def test_an_output_that_nothing_uses_counts_for_nothing() -> None:
    v = inputs()
    wanted = trained(v)
    found = torch.autograd.grad(together(v)[1].sum(), wanted)
    torch.testing.assert_close(found, torch.autograd.grad(
        apart(v)[1].sum(), wanted, allow_unused=True, materialize_grads=True
    ))


def test_what_is_kept_for_backward() -> None:
    """x once, the columns of all adapters once, and nothing else of the tokens."""
    v = inputs()
    trained(v)
    kept: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        together(v, **DROPOUT)
    own = {t.data_ptr() for ts in v.values() for t in ts if t is not None} - {v["x"][0].data_ptr()}
    per_token = [t.numel() // 8 for key, t in kept.items() if key not in own and t.numel() >= 8 and t.numel() % 8 == 0
                 and t.dtype == torch.float64]
    assert sorted(per_token) == [6, RANKS]  # K of x, the sum of the ranks


@pytest.mark.parametrize("drop", [{}, DROPOUT], ids=["plain", "dropout"])
@pytest.mark.parametrize("biased", ["some", "none"])
def test_a_compiler_sees_one_operator(drop, biased) -> None:
    v = inputs(torch.float32, biased=biased)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    def way(x: torch.Tensor, a: torch.Tensor, *bs: torch.Tensor) -> torch.Tensor:
        return sum(y.sin().sum() for y in together({**v, "x": [x], "a": [a], "bs": list(bs)}, **drop))

    wanted = trained(v)
    assert torch.allclose(torch.compile(way, backend=backend, fullgraph=True)(*wanted), way(*wanted))
    assert [str(node) for node in graphs[0] if "numllm" in str(node)] == ["numllm.lora_linears"]
    found = torch.autograd.grad(torch.compile(way, backend="aot_eager", fullgraph=True)(*wanted), wanted)
    torch.testing.assert_close(found, torch.autograd.grad(way(*wanted), wanted))


def test_the_operator_is_what_torch_asks_of_one() -> None:
    v = inputs(torch.float32)
    given = (v["x"][0].view(8, 6), v["ws"], v["biases"], *v["a"], v["bs"], None, SCALES, COLUMNS, ROWS.view(-1), None,
             None, "torch")
    trained(v)
    torch.library.opcheck(torch.ops.numllm.lora_linears.default, given)


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"ws": []}, ValueError, "of as many linears, at least one; got 0, 3 and 3"),
    ({"biases": []}, ValueError, "got 3, 0 and 3"),
    ({"a": [torch.zeros(9, 6).double()]}, ValueError, r"a row for each column of bs.*got 9 for \[5, 2, 1\]"),
    ({"a": [torch.zeros(8, 4).double()]}, ValueError, r"a must be \(8, 6\)"),
    ({"ws": [torch.zeros(n, k).double() for n, k in ((7, 6), (3, 6), (4, 7))]}, ValueError, r"w\[2\] must be \(4, 6\)"),
    ({"bs": [torch.zeros(n, r).double() for n, r in ((7, 5), (4, 2), (4, 1))]}, ValueError, r"b\[1\] must be \(3, 2\)"),
    ({"biases": [None, torch.zeros(2).double(), None]}, ValueError, r"bias\[1\] must be \(3,\)"),
    ({"ws": [torch.zeros(n, 6) for n, _ in SIZES]}, TypeError, r"w\[0\] must be of x's dtype"),
    ({"bs": [torch.zeros(n, r).int() for n, r in SIZES]}, TypeError, r"b\[0\] must be floating point"),
])
def test_what_does_not_fit_is_named(changes, error, message) -> None:
    with pytest.raises(error, match=message):
        together({**inputs(), **changes})
