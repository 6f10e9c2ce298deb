"""Norm and SwiGLU that hand the thin product on to LoRA linears: the results and gradients of the two apart."""

from __future__ import annotations

import block_cases
import pytest
import torch
import torch.utils.checkpoint
from tolerance import check
from torch import Tensor

from numllm import ops, reference
from numllm.ops import elementwise, implementations

pytestmark = pytest.mark.usefixtures("poisoned", "by_kernels")

EPS = 1e-5
NS, RANKS = (10, 4, 3), (6, 3, 4)
"""N and R of the linears behind."""
COLUMNS = torch.tensor([0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1], dtype=torch.int32)
SCALES = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.7, 0.7, 1.5, 1.5, 0.3, 1.5, 0.3, 0.3, 0.3])
MAKERS = ("norm", "sum and norm", "swiglu")


def inputs(maker: str, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Of the producer and of the linears behind it: x (3, 7, 40)."""
    make = block_cases.Maker(11, dtype, device, "packed")
    names = {"norm": ("x", "weight"), "sum and norm": ("x", "added", "weight"), "swiglu": ("gate", "up")}[maker]
    found = {name: make.matrix(40) if name == "weight" else make.matrix(3, 7, 40) for name in names}
    found["a"] = make.matrix(sum(RANKS), 40, size=40**-0.5)
    for place, (n, r) in enumerate(zip(NS, RANKS, strict=True)):
        found |= {f"w{place}": make.matrix(n, 40, size=40**-0.5), f"b{place}": make.matrix(n, r, size=r**-0.5)}
    return found


def rows_of(device: torch.device) -> Tensor:
    return ((torch.arange(21, device=device) % 3) - 1).to(torch.int32).view(3, 7)


def apart(maker: str, by_row: bool, **v: Tensor) -> list[Tensor]:
    """By the reference: (ys, and the sum where there is one)."""
    more = []
    if maker == "swiglu":
        x = reference.swiglu(v["gate"], v["up"])
    else:
        h = torch.add(v["x"], v["added"], alpha=0.5) if maker == "sum and norm" else v["x"]
        x = reference.rms_norm(h, v["weight"], EPS)
        more = [h] if maker == "sum and norm" else []
    device = x.device
    rows = rows_of(device).view(-1) if by_row else None
    parts = zip(
        *([v[f"{name}{i}"] for i in range(3)] for name in "wb"),
        v["a"].split(RANKS), SCALES.to(device).split(RANKS), COLUMNS.to(device).split(RANKS), strict=True,
    )
    ys = [
        reference.lora_linear(x.view(21, 40), w, None, a, b, scales, columns, rows).view(3, 7, -1)
        for w, b, a, scales, columns in parts
    ]
    return [*ys, *more]


def produced(maker: str, by_row: bool, impl: str = "triton-produced", **v: Tensor) -> list[Tensor]:
    """By the producer and the linears that take its s."""
    device = v["a"].device
    rows = rows_of(device) if by_row else None
    thin = ops.Thin(v["a"], SCALES.to(device), COLUMNS.to(device) if by_row else None, rows, impl)
    more = []
    if maker == "swiglu":
        x, thin = ops.swiglu_down(v["gate"], v["up"], thin)
    elif maker == "norm":
        x, thin = ops.norm_down(v["x"], v["weight"], EPS, thin)
    else:
        h, x, thin = ops.add_norm_down(v["x"], v["added"], v["weight"], EPS, 0.5, thin)
        more = [h]
    assert thin.s.shape == (3, 7, sum(RANKS)) and not thin.s.requires_grad
    ys = ops.lora_linears(
        x, [v[f"w{i}"] for i in range(3)], [None] * 3, thin.a, [v[f"b{i}"] for i in range(3)], thin.scales,
        thin.columns, thin.rows, impl, s=thin.s,
    )
    return [*ys, *more]


def trained(v: dict[str, Tensor]) -> list[str]:
    return [name for name in v if not name.startswith("w") or name == "weight"]


def upstream(maker: str, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    make = block_cases.Maker(12, dtype, device, "packed")
    return [make.matrix(3, 7, n) for n in (*NS, *([40] if maker == "sum and norm" else []))]


@pytest.mark.parametrize("by_row", [False, True], ids=["all-on", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("maker", MAKERS)
def test_results_and_gradients(device, maker, dtype, by_row) -> None:
    v = inputs(maker, dtype, device)
    check(
        lambda **given: produced(maker, by_row, **given), lambda **given: apart(maker, by_row, **given), v, trained(v),
        upstream(maker, dtype, device), units=8,
    )


@pytest.mark.parametrize("maker", MAKERS)
def test_x_is_not_read_for_s(device, launched, maker) -> None:
    v = inputs(maker, torch.float32, device)
    produced(maker, True, **v)
    assert launched == ["swiglu_down_kernel" if maker == "swiglu" else "norm_down_kernel"]


def test_rows_too_wide_for_the_norms_backward_are_read(device, launched, monkeypatch) -> None:
    monkeypatch.setattr(elementwise, "WIDEST_NORM", 8)
    v = inputs("sum and norm", torch.float32, device)
    found = produced("sum and norm", True, **v)
    assert launched == ["down_kernel"]
    for ours, theirs in zip(found, apart("sum and norm", True, **v), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_torch_makes_s_apart(device, launched) -> None:
    v = inputs("swiglu", torch.float32, device)
    for ours, theirs in zip(produced("swiglu", True, "torch", **v), apart("swiglu", True, **v), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not {"swiglu_down_kernel", "down_kernel"} & set(launched)


@pytest.mark.parametrize("maker", MAKERS)
def test_the_same_is_kept_for_backward(device, maker) -> None:
    """To the byte what the two keep that take s apart."""
    v = inputs(maker, torch.float32, device)
    for name in trained(v):
        v[name].requires_grad_()
    own = {value.data_ptr() for value in v.values()}

    def kept(run) -> int:
        storages: dict[int, Tensor] = {}
        hooks = (lambda tensor: storages.setdefault(tensor.data_ptr(), tensor)), lambda tensor: tensor
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            results = run()
        assert results
        return sum(tensor.untyped_storage().nbytes() for key, tensor in storages.items() if key not in own)

    def two() -> list[Tensor]:
        if maker == "swiglu":
            x = elementwise.swiglu(v["gate"], v["up"], "triton")
        elif maker == "norm":
            x = elementwise.rms_norm(v["x"], v["weight"], EPS, "triton")
        else:
            x = elementwise.add_rms_norm(v["x"], v["added"], v["weight"], EPS, 0.5, "triton")[1]
        return ops.lora_linears(
            x, [v[f"w{i}"] for i in range(3)], [None] * 3, v["a"], [v[f"b{i}"] for i in range(3)], scales, None, None,
            "triton",
        )

    scales = SCALES.to(device)
    assert kept(lambda: produced(maker, False, **v)) == kept(two)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_compiler_sees_two_operators(device, maker) -> None:
    v = inputs(maker, torch.float32, device)
    wanted = [v[name].requires_grad_() for name in trained(v)]
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes if "numllm" in str(node.target))
        return graph.forward

    def way() -> Tensor:
        asked = ops.produces(v["a"], "triton-produced") and not ops.produces(v["a"], "triton")
        return sum(part.sin().sum() for part in produced(maker, True, **v)) + asked

    expected = way()
    assert torch.allclose(torch.compile(way, backend=backend, fullgraph=True)(), expected)
    assert seen == [f"numllm.{'swiglu_down' if maker == 'swiglu' else 'norm_down'}", "numllm.lora_linears"]
    found = torch.autograd.grad(torch.compile(way, backend="aot_eager", fullgraph=True)(), wanted)
    torch.testing.assert_close(found, torch.autograd.grad(expected, wanted))


@pytest.mark.parametrize("maker", MAKERS)
def test_checkpointing_gives_the_same_bits(device, maker) -> None:
    v = inputs(maker, torch.float16, device)
    wanted = [v[name].requires_grad_() for name in trained(v)]

    def way() -> Tensor:
        return sum(part.float().sin().sum() for part in produced(maker, True, **v))

    expected = torch.autograd.grad(way(), wanted)
    again = torch.utils.checkpoint.checkpoint(way, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(again, wanted), expected))


@pytest.mark.parametrize("given_s", [False, True])
def test_the_operators_are_registered_rightly(device, given_s) -> None:
    v = {name: value.detach() for name, value in inputs("sum and norm", torch.float32, device).items()}
    x, added = (v[name].requires_grad_() for name in ("x", "added"))
    choice = v["a"], SCALES.to(device), COLUMNS.to(device), rows_of(device).view(-1)
    for more in (added, None):
        torch.library.opcheck(torch.ops.numllm.norm_down, (x, more, v["weight"], EPS, 0.5, *choice))
    torch.library.opcheck(torch.ops.numllm.swiglu_down, (x, added, *choice))
    s = torch.randn(21, sum(RANKS), device=device) if given_s else None
    torch.library.opcheck(torch.ops.numllm.lora_linears.default, (
        v["x"].view(21, 40).detach().requires_grad_(), [v[f"w{i}"] for i in range(3)], [], choice[0],
        [v[f"b{i}"] for i in range(3)], s, *choice[1:], None, None, "triton",
    ))


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"s": torch.zeros(3, 7, 12)}, ValueError, r"s must be \(3, 7, 13\)"),
    ({"s": torch.zeros(3, 7, 13).double()}, TypeError, "s must be torch.float32"),
    ({"s": torch.zeros(3, 7, 13).requires_grad_()}, ValueError, "s must be frozen"),
    ({"s": torch.zeros(3, 7, 13), "dropout": torch.zeros(3, 7), "seed": torch.tensor(1)}, ValueError,
     "s is of an x without dropout"),
])
def test_an_s_that_does_not_fit_is_refused(change, error, message) -> None:
    v = inputs("norm", torch.float32, torch.device("cpu"))
    with pytest.raises(error, match=message):
        ops.lora_linears(
            v["x"], [v[f"w{i}"] for i in range(3)], [None] * 3, v["a"], [v[f"b{i}"] for i in range(3)], SCALES,
            impl="torch", **change,
        )


def test_where_what_makes_x_takes_the_product(device, families, monkeypatch) -> None:
    """Only where it is asked for, or measured to be the faster way."""
    x = torch.zeros(4, 8, device=device)
    tiles = families["tiles"]
    monkeypatch.setattr(tiles, "PRODUCED", {})
    assert ops.produces(x, "triton-produced")
    assert not any(ops.produces(x, impl) for impl in ("triton", "triton-fused", "torch", "auto"))
    monkeypatch.setattr(tiles, "PRODUCED", {tiles.capability(device): True})
    assert ops.produces(x, "triton") and ops.produces(x, "triton-fused") and not ops.produces(x, "torch")
    assert implementations.lora_kernels("triton-produced", x) is families["lora"]
