"""The LoRA linear and the cross-entropy on a GPU, in the sizes and precisions of training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lora_cases import SEED, Case, check, expected, make_case
from torch import Tensor

from numllm import ops
from numllm.ops import implementations

pytestmark = pytest.mark.gpu

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHAPES = [(2048, 1024, 1536, (16,)), (1500, 1000, 520, (16, 16)), (333, 1024, 2048, (8, 24)), (1100, 520, 72, (128,))]
SHAPE_IDS = ["x".join(map(str, shape[:3])) + "-r" + "+".join(map(str, shape[3])) for shape in SHAPES]


def drop(case: Case) -> dict[str, Tensor]:
    """The dropout of a case, as the operators take it."""
    return {} if case.shares is None else {"dropout": case.shares, "seed": torch.tensor(SEED)}


def run(case: Case, impl: str) -> dict[str, Tensor]:
    """y and the gradients through autograd, the factors as they are in training: fp32."""
    x = case.x.detach().clone().requires_grad_()
    a, b = (value.detach().float().requires_grad_() for value in (case.a, case.b))
    y = ops.lora_linear(x, case.w, case.bias, a, b, case.scales, case.columns, case.rows, impl=impl, **drop(case))
    y.backward(case.dy)
    assert a.grad.dtype == b.grad.dtype == torch.float32
    return {"y": y.detach(), "dx": x.grad, "da": a.grad, "db": b.grad}


@pytest.mark.parametrize("impl", ["triton", "triton-fused", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("rows", [None, "mixed"], ids=["all-on", "mixed"])
def test_forward_and_gradients(shape, dtype, rows, impl) -> None:
    case = make_case(*shape, dtype=DTYPES[dtype], device="cuda", rows=rows, bias=rows == "mixed")
    check(run(case, impl), case)


@pytest.mark.parametrize("impl", ["triton", "triton-fused", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout(dtype, impl) -> None:
    """The mask is the reference's, which is the CPU's."""
    case = make_case(1500, 1000, 520, (16, 16), dtype=DTYPES[dtype], device="cuda", rows="mixed", dropout=True)
    check(run(case, impl), case)


@pytest.mark.parametrize("impl", ["triton", "triton-fused", "torch"])
@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
def test_linears_of_one_input(impl, dropout) -> None:
    """q, k and v with two adapters: each as alone, x's gradient their sum."""
    sizes = (1536, 256, 256)
    cases = [
        make_case(2048, n, 1024, (16, 16), dtype=torch.bfloat16, device="cuda", rows="mixed", dropout=dropout)
        for n in sizes
    ]
    first = cases[0]
    for case in cases:
        case.x = first.x
    x = first.x.clone().requires_grad_()
    a = torch.cat([case.a for case in cases]).float().requires_grad_()
    bs = [case.b.float().requires_grad_() for case in cases]
    ys = ops.lora_linears(
        x, [case.w for case in cases], [None] * 3, a, bs, torch.cat([case.scales for case in cases]),
        torch.cat([case.columns for case in cases]), first.rows, impl, **drop(first),
    )
    torch.autograd.backward(ys, [case.dy for case in cases])
    for case, y, da, b in zip(cases, ys, a.grad.split(32), bs, strict=True):
        check({"y": y.detach(), "da": da, "db": b.grad}, case)
    exact = sum(expected(case.to(torch.float64))["dx"] for case in cases)
    rough = sum(expected(case)["dx"] for case in cases)
    allowed = (rough.double() - exact).abs().max() + 4 * torch.finfo(torch.bfloat16).eps * exact.abs().max()
    assert (x.grad.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("impl", ["triton", "triton-fused", "torch"])
def test_a_cuda_graph_replays_forward_and_backward(impl) -> None:
    case = make_case(512, 256, 384, (16, 16), dtype=torch.bfloat16, device="cuda", rows="mixed", bias=True)
    wanted = run(case, impl)  # the kernels are compiled before the capture
    x = case.x.clone().requires_grad_()
    a, b = (value.float().requires_grad_() for value in (case.a, case.b))

    def step() -> tuple[Tensor, ...]:
        y = ops.lora_linear(x, case.w, case.bias, a, b, case.scales, case.columns, case.rows, impl=impl)
        return (y, *torch.autograd.grad(y, (x, a, b), case.dy))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        x.zero_()
    graph.replay()
    assert not found[2].any()  # dA of no input
    with torch.no_grad():
        x.copy_(case.x)
    graph.replay()
    for value, want in zip(found, wanted.values(), strict=True):
        assert torch.equal(value, want)


@pytest.mark.parametrize("impl", ["triton", "triton-fused", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_twice(dtype, impl) -> None:
    case = make_case(1500, 1000, 2048, (16, 16), dtype=DTYPES[dtype], device="cuda", rows="mixed", bias=True)
    first, second = run(case, impl), run(case, impl)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_auto_goes_through_the_kernels(monkeypatch) -> None:
    common = implementations.load_kernels("common")
    calls = []
    launch = common.launch
    monkeypatch.setattr(common, "launch", lambda *args, **more: calls.append(args[0]) or launch(*args, **more))
    case = make_case(64, 48, 32, (16,), dtype=torch.bfloat16, device="cuda")
    check(run(case, "auto"), case)
    assert calls


def test_offsets_beyond_32_bits() -> None:
    """A y of 2^31 elements and more."""
    m, n, k = 2**17 + 64, 2**14 + 8, 64
    case = make_case(m, 8, k, (16,), dtype=torch.bfloat16, device="cuda")
    w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(n, 16, device="cuda", dtype=torch.bfloat16)
    kernels = implementations.load_kernels("lora")
    s = kernels.down(case.x, case.a, case.scales)
    y = kernels.linear(case.x, w, None, s, b)
    tail = case.x[-50:].float() @ w.float().T + s[-50:].float() @ b.float().T
    torch.testing.assert_close(y[-50:].float(), tail, rtol=1e-2, atol=1e-2)
    ds, db = kernels.down_outer(y, b, s, case.scales)
    wanted = (y[-50:].float() @ b.float()) * case.scales
    torch.testing.assert_close(ds[-50:].float(), wanted, rtol=1e-2, atol=1e-2 * wanted.abs().max().item())
    columns = y[:, -50:].float().T @ s.float()
    torch.testing.assert_close(db[-50:], columns, rtol=1e-2, atol=1e-2 * columns.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
def test_token_losses(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 256, generator=generator).to("cuda", DTYPES[dtype]).requires_grad_()
    w = (torch.randn(5003, 256, generator=generator) / 16).to("cuda", DTYPES[dtype])
    labels = torch.randint(5003, (3000,), generator=generator).cuda()
    weights = torch.rand(3000, generator=generator).cuda()
    losses = ops.token_losses(x, w, labels, 1024)
    (losses * weights).sum().backward()
    exact = x.detach().double().requires_grad_()
    true = F.cross_entropy(exact @ w.double().T, labels, reduction="none")
    (true * weights).sum().backward()
    rough = x.detach().requires_grad_()
    low = F.cross_entropy((rough @ w.T).float(), labels, reduction="none")
    (low * weights).sum().backward()
    for got, want, other in ((losses.detach(), true.detach(), low.detach()), (x.grad, exact.grad, rough.grad)):
        allowed = (other.double() - want).abs().max() + 4 * torch.finfo(DTYPES[dtype]).eps * want.abs().max()
        assert (got.double() - want).abs().max() <= allowed
    assert torch.equal(ops.token_losses(x, w, labels, 1024), losses)
