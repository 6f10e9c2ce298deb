"""RMSNorm, SwiGLU and the rotation by kernels against the reference: forward and every gradient.

Without a GPU they run in Triton's interpreter, in fp32 and fp16; bf16 is in test_gpu_blocks.py.
"""

from __future__ import annotations

import block_cases
import pytest
import torch
import torch.utils.checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerance import check

from numllm.ops import elementwise

pytestmark = pytest.mark.usefixtures("poisoned", "by_kernels")

DTYPES = st.sampled_from([torch.float32, torch.float16])
LAYOUTS = st.sampled_from(block_cases.LAYOUTS)
shapes = settings(
    max_examples=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixtures hold nothing that a run changes
)


@shapes
@given(
    rows=st.integers(0, 40), size=st.integers(2, 300), dtype=DTYPES, layout=LAYOUTS,
    trained=st.sampled_from([("x",), ("x", "weight"), ("weight",)]),
)
def test_norm(device, rows, size, dtype, layout, trained) -> None:
    case = block_cases.norm(rows, size, dtype=dtype, device=device, layout=layout)
    check(case.by("triton"), case.by("torch"), case.inputs, trained, case.upstream)


@shapes
@given(
    rows=st.integers(0, 40), size=st.integers(2, 300), dtype=DTYPES, layout=LAYOUTS,
    scale=st.sampled_from([1.0, 0.25, 1.4 / 40**0.5]),
)
def test_sum_and_norm(device, rows, size, dtype, layout, scale) -> None:
    case = block_cases.add_norm(rows, size, scale, dtype=dtype, device=device, layout=layout)
    check(case.by("triton"), case.by("torch"), case.inputs, ("x", "added", "weight"), case.upstream)


@shapes
@given(rows=st.integers(0, 9), size=st.integers(1, 3000), dtype=DTYPES, layout=LAYOUTS)
def test_swiglu(device, rows, size, dtype, layout) -> None:
    case = block_cases.swiglu(rows, size, dtype=dtype, device=device, layout=layout)
    check(case.by("triton"), case.by("torch"), case.inputs, ("gate", "up"), case.upstream)


@shapes
@given(
    batch=st.integers(1, 3), count=st.integers(0, 6), heads=st.tuples(st.integers(1, 40), st.integers(1, 5)),
    pairs=st.integers(1, 20), rest=st.sampled_from([0, 0, 3, 8]), neighbours=st.booleans(), dtype=DTYPES,
    layout=LAYOUTS, apart=st.booleans(),
)
def test_rotation(device, batch, count, heads, pairs, rest, neighbours, dtype, layout, apart) -> None:
    case = block_cases.rotation(
        batch, count, *heads, pairs, rest, neighbours, dtype=dtype, device=device, layout=layout, apart=apart
    )
    found = check(case.by("triton"), case.by("torch"), case.inputs, ("q", "k"), case.upstream)
    expected = case.by("torch")(**case.inputs)
    if dtype == torch.float16:  # with torch's roundings, of torch's results no bit differs
        assert all(torch.equal(found[f"output {place}"], part) for place, part in enumerate(expected))


def test_swiglu_backward_in_place(families, device) -> None:
    case = block_cases.swiglu(5, 70, dtype=torch.float32, device=device)
    apart = families["swiglu"].swiglu_backward(case.upstream[0], **case.inputs)
    gate, up = (part.clone() for part in case.inputs.values())
    families["swiglu"].swiglu_backward(case.upstream[0], gate, up, out=(gate, up))
    assert torch.equal(gate, apart[0]) and torch.equal(up, apart[1])
    with pytest.raises(ValueError, match="out must be rows"):
        families["swiglu"].swiglu_backward(case.upstream[0], gate, up, out=(gate.T.contiguous().T, up))


def test_the_gradient_of_a_weight_is_summed_in_one_order(families, device, monkeypatch) -> None:
    monkeypatch.setattr(families["norm"], "_PROGRAMS", 3)  # several tiles for each, and a last one with fewer
    monkeypatch.setattr(families["norm"], "_TILE", 64)
    case = block_cases.norm(37, 30, dtype=torch.float32, device=device)
    first, second = (
        check(case.by("triton"), case.by("torch"), case.inputs, ("x", "weight"), case.upstream) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("used", [0, 1], ids=["the sum alone", "the norm alone"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_one_result_of_two_is_used(device, used, scale) -> None:
    case = block_cases.add_norm(6, 20, scale, dtype=torch.float32, device=device)
    check(
        lambda **inputs: case.by("triton")(**inputs)[used], lambda **inputs: case.by("torch")(**inputs)[used],
        case.inputs, ("x", "added"), case.upstream[used : used + 1],
    )


def test_rows_too_wide_go_to_torch_or_nowhere(device, monkeypatch) -> None:
    monkeypatch.setattr(elementwise, "WIDEST_NORM", 8)
    case = block_cases.norm(3, 9, dtype=torch.float32, device=device)
    with pytest.raises(ValueError, match="impl='triton' norms up to 8 features, got 9; pass impl='torch'"):
        case.by("triton")(**case.inputs)
    assert torch.equal(case.by("auto")(**case.inputs), case.by("torch")(**case.inputs))


def test_wrong_rotations_are_refused(device) -> None:
    case = block_cases.rotation(2, 3, 4, 2, 4, 0, False, dtype=torch.float32, device=device)
    given = case.inputs
    for changes, message in (
        ({"k": given["k"][:1]}, r"k \(B, G, T, E\), got"), ({"cos": given["cos"][:, :, :2]}, "cos must be"),
        ({"cos": given["cos"][..., :3]}, "even number of q's 8 features, got 3"),
        ({"sin": given["sin"][..., :4]}, "sin must have cos's shape"),
    ):
        with pytest.raises(ValueError, match=message):
            case.by("triton")(**given | changes)
    with pytest.raises(TypeError, match="cos must be of q's dtype"):
        case.by("triton")(**given | {"cos": given["cos"].half(), "sin": given["sin"].half()})


def a_block(x, added, weight, cos, sin):
    """All of them after one another; a scalar of every gradient's reach."""
    h, y = elementwise.add_rms_norm(x, added, weight, 1e-6, 0.5, impl="triton")
    y = elementwise.swiglu(y, elementwise.rms_norm(h, weight, 1e-6, impl="triton"), impl="triton")
    heads = y.unflatten(-1, (3, 8)).transpose(1, 2)
    q, k = elementwise.rotate(heads, heads[:, :1], cos, sin, impl="triton")
    return (q.sin().sum() + k.cos().sum() + h.square().mean()) / 10


def block_inputs(device) -> list[torch.Tensor]:
    rotation = block_cases.rotation(2, 3, 3, 1, 3, 2, False, dtype=torch.float32, device=device).inputs
    generator = torch.Generator().manual_seed(7)
    x, added, weight = (torch.randn(shape, generator=generator) for shape in ((2, 3, 24), (2, 3, 24), (24,)))
    return [*(part.to(device).requires_grad_() for part in (x, added, weight)), rotation["cos"], rotation["sin"]]


def test_a_compiler_sees_operators(device) -> None:
    inputs = block_inputs(device)
    expected = a_block(*inputs)
    found = torch.compile(a_block, backend="aot_eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, inputs[:3])
    for ours, theirs in zip(torch.autograd.grad(found, inputs[:3]), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_checkpointing_gives_the_same_bits(device) -> None:
    inputs = block_inputs(device)
    wanted = torch.autograd.grad(a_block(*inputs), inputs[:3])
    again = torch.utils.checkpoint.checkpoint(a_block, *inputs, use_reentrant=False)
    assert all(torch.equal(*pair) for pair in zip(torch.autograd.grad(again, inputs[:3]), wanted, strict=True))


def test_backward_twice_leaves_what_was_kept_as_it_was(device) -> None:
    inputs = block_inputs(device)
    total = a_block(*inputs)
    first, second = (torch.autograd.grad(total, inputs[:3], retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_a_second_derivative_is_refused(device) -> None:
    inputs = block_inputs(device)
    (gradient,) = torch.autograd.grad(a_block(*inputs), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_operators_are_registered_rightly(device) -> None:
    x, added, weight, cos, sin = block_inputs(device)
    rows = x.detach().view(6, 24).requires_grad_()
    heads = x.detach().unflatten(-1, (3, 8)).transpose(1, 2).requires_grad_()
    for operator, arguments in (
        (torch.ops.numllm.norm, (rows, None, weight, 1e-6, 1.0)),
        (torch.ops.numllm.norm, (x, added, weight, 1e-6, 0.5)),
        (torch.ops.numllm.swiglu, (x, added)), (torch.ops.numllm.rotate, (heads, heads, cos, sin, False, False)),
    ):
        torch.library.opcheck(operator, arguments)
