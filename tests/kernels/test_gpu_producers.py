"""Norm and SwiGLU with the thin product in them on a GPU, in the sizes and precisions of training."""

from __future__ import annotations

import pytest
import test_producers
import torch
from block_cases import Maker
from test_producer_kernels import EPS, adapters, check_like_torch, check_s

from numllm import reference
from numllm.ops import implementations

pytestmark = pytest.mark.gpu

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHAPES = [(3000, 3584, (16,) * 3), (1500, 1001, (16, 8)), (333, 2048, (64, 80)), (8192, 896, (16,))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.3], ids=["norm", "sum and norm"])
def test_norm(shape, dtype, scale) -> None:
    """The producer's results, s of the y that it stored, and the same bits twice."""
    tokens, size, ranks = shape
    make = Maker(tokens + size, DTYPES[dtype], "cuda", "rows apart")
    x, weight = make.matrix(tokens, size), 1 + make.matrix(1, size)[0]
    more = {} if scale is None else {"added": make.matrix(tokens, size), "scale": scale}
    given = adapters(make, tokens, size, ranks, True)
    norm, producer = (implementations.load_kernels(name) for name in ("norm", "producer"))
    h, y, rms, s = producer.norm_down(x, weight, EPS, *given, **more)
    apart_h, _, apart_rms = norm.norm(x, weight, EPS, **more)
    assert torch.equal(h, apart_h)
    torch.testing.assert_close(rms, apart_rms, rtol=1e-5, atol=0)
    check_like_torch(y, reference.rms_norm(h, weight, EPS), reference.rms_norm(h.double(), weight.double(), EPS), "y")
    check_s(s, y, given)
    again = producer.norm_down(x, weight, EPS, *given, **more)
    assert torch.equal(again[1], y) and torch.equal(again[3], s)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2048, 18944, (16,))], ids=str)
def test_swiglu(shape, dtype) -> None:
    """As `test_norm`."""
    tokens, size, ranks = shape
    make = Maker(tokens - size, DTYPES[dtype], "cuda", "rows apart")
    gate, up = make.matrix(tokens, size, size=4), make.matrix(tokens, size)
    given = adapters(make, tokens, size, ranks, True)
    swiglu, producer = (implementations.load_kernels(name) for name in ("swiglu", "producer"))
    y, s = producer.swiglu_down(gate, up, *given)
    torch.testing.assert_close(y, swiglu.swiglu(gate, up), rtol=2 * torch.finfo(y.dtype).eps, atol=1e-6)
    check_s(s, y, given)
    assert all(map(torch.equal, producer.swiglu_down(gate, up, *given), (y, s)))


@pytest.mark.parametrize("maker", test_producers.MAKERS)
def test_in_bf16_through_autograd(maker) -> None:
    device = torch.device("cuda")
    v = test_producers.inputs(maker, torch.bfloat16, device)
    test_producers.check(
        lambda **given: test_producers.produced(maker, True, **given),
        lambda **given: test_producers.apart(maker, True, **given), v, test_producers.trained(v),
        test_producers.upstream(maker, torch.bfloat16, device), units=8,
    )


def test_offsets_beyond_32_bits() -> None:
    """Inputs and results of 2^31 elements and more."""
    rows, size = 2**17 + 8, 2**14
    producer = implementations.load_kernels("producer")
    gate = torch.randn(rows, size, dtype=torch.bfloat16, device="cuda")
    a = torch.randn(16, size, dtype=torch.bfloat16, device="cuda") / size**0.5
    scales = torch.ones(16, device="cuda")
    y, s = producer.swiglu_down(gate, gate, a, scales)
    torch.testing.assert_close(y[-8:], reference.swiglu(gate[-8:], gate[-8:]), rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(s[-8:].float(), y[-8:].float() @ a.float().T, rtol=1e-2, atol=2e-2)
    weight = torch.rand(size, dtype=torch.bfloat16, device="cuda")
    _, y, _, s = producer.norm_down(gate, weight, EPS, a, scales)
    torch.testing.assert_close(y[-8:], reference.rms_norm(gate[-8:], weight, EPS), rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(s[-8:].float(), y[-8:].float() @ a.float().T, rtol=1e-2, atol=2e-2)
