"""Norm, SwiGLU and rotation as the model calls them: what runs where, under a compiler, under checkpointing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from numllm import reference
from numllm.ops import elementwise, implementations
from numllm.rope import rotate, rotations


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["fp32", "bf16", "fp64"])
def test_on_a_cpu_torch_computes(monkeypatch, dtype) -> None:
    monkeypatch.setattr(implementations, "load_kernels", None)
    x, added = drawn(3, 4, 10, dtype=dtype), drawn(3, 4, 10, seed=1, dtype=dtype)
    weight = drawn(10, seed=2, dtype=dtype)
    h = torch.add(x, added, alpha=0.5)
    assert torch.equal(elementwise.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
    found = elementwise.add_rms_norm(x, added, weight, 1e-6, 0.5)
    assert torch.equal(found[0], h) and torch.equal(found[1], reference.rms_norm(h, weight, 1e-6))
    assert torch.equal(elementwise.swiglu(x, added), F.silu(x) * added)
    q, k = drawn(2, 4, 5, 8, dtype=dtype), drawn(2, 2, 5, 8, dtype=dtype)
    angles = rotations(drawn(1, 1, 5, 3, dtype=dtype), neighbours=True)
    turned = elementwise.rotate(q, k, angles.cos(), angles.sin(), neighbours=True)
    for part, given in zip(turned, (q, k), strict=True):
        assert torch.equal(part, rotate(given, angles.cos(), angles.sin(), neighbours=True))


def test_the_reference_norm_is_torchs() -> None:
    x, weight = drawn(5, 12, dtype=torch.float64), drawn(12, seed=1, dtype=torch.float64)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-3), F.rms_norm(x, (12,), weight, 1e-3))


def test_an_implementation_that_cannot_run_is_refused(monkeypatch) -> None:
    x, weight = drawn(2, 4), drawn(4)
    with pytest.raises(ValueError, match="impl must be one of auto, torch, triton; got 'fast'"):
        elementwise.rms_norm(x, weight, 1e-6, impl="fast")
    pytest.importorskip("triton")
    if not implementations.interpreted():
        with pytest.raises(ValueError, match="takes CUDA tensors, got cpu; pass impl='torch'"):
            elementwise.swiglu(x, x, impl="triton")
    with pytest.raises(TypeError, match="takes fp32, fp16 or bf16, got torch.float64"):
        elementwise.swiglu(x.double(), x.double(), impl="triton")
    monkeypatch.setattr(implementations, "load_kernels", lambda family: None)
    with pytest.raises(ValueError, match="needs the package triton"):
        elementwise.swiglu(x, x, impl="triton")


def test_wrong_inputs_are_refused() -> None:
    x = drawn(2, 4)
    with pytest.raises(ValueError, match=r"weight \(D,\), got \(2, 4\) and \(5,\)"):
        elementwise.rms_norm(x, drawn(5), 1e-6)
    with pytest.raises(TypeError, match="weight must be of x's dtype"):
        elementwise.rms_norm(x, drawn(4).half(), 1e-6)
    with pytest.raises(ValueError, match=r"added must have x's shape \(2, 4\), got \(1, 4\)"):
        elementwise.add_rms_norm(x, x[:1], drawn(4), 1e-6)
    with pytest.raises(ValueError, match=r"up must have gate's shape \(2, 4\), got \(4,\)"):
        elementwise.swiglu(x, x[0])
