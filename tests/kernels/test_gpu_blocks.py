"""Norm, SwiGLU, rotation and loss on a GPU, in the sizes and precisions of training."""

from __future__ import annotations

import block_cases
import pytest
import torch
import torch.nn.functional as F
from tolerance import check

from numllm import ops
from numllm.ops import elementwise, implementations

pytestmark = pytest.mark.gpu

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CASES = {
    "norm": (("x", "weight"), lambda **kind: block_cases.norm(3000, 3584, **kind)),
    "norm of heads": (("x", "weight"), lambda **kind: block_cases.norm(70_001, 128, **kind)),
    "widest norm": (("x",), lambda **kind: block_cases.norm(300, 16384, **kind)),
    "sum and norm": (("x", "added", "weight"), lambda **kind: block_cases.add_norm(3000, 3584, 0.3, **kind)),
    "odd sum and norm": (("x", "added", "weight"), lambda **kind: block_cases.add_norm(777, 1001, 1.0, **kind)),
    "swiglu": (("gate", "up"), lambda **kind: block_cases.swiglu(1500, 18944, **kind)),
    "odd swiglu": (("gate", "up"), lambda **kind: block_cases.swiglu(333, 1001, **kind)),
    "rotation": (("q", "k"), lambda **kind: block_cases.rotation(2, 1024, 28, 4, 64, 0, False, **kind)),
    "partial rotation of neighbours": (
        ("q", "k"), lambda **kind: block_cases.rotation(2, 700, 32, 2, 32, 64, True, apart=True, **kind)
    ),
    "odd rotation": (("q", "k"), lambda **kind: block_cases.rotation(3, 77, 40, 5, 20, 3, False, **kind)),
}


@pytest.mark.parametrize(
    ("dtype", "layout"), [*((dtype, "packed") for dtype in DTYPES), ("bf16", "rows apart")]
)
@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients(name, dtype, layout) -> None:
    trained, make = CASES[name]
    case = make(dtype=DTYPES[dtype], device="cuda", layout=layout)
    first, second = (
        check(case.by("auto"), case.by("torch"), case.inputs, trained, case.upstream) for _ in range(2)
    )
    assert all(torch.equal(first[part], second[part]) for part in first), "other bits the second time"


def test_auto_goes_through_the_kernels(monkeypatch) -> None:
    common = implementations.load_kernels("common")
    calls = []
    launch = common.launch
    monkeypatch.setattr(common, "launch", lambda *args, **more: calls.append(args[0]) or launch(*args, **more))
    case = block_cases.swiglu(8, 64, dtype=torch.bfloat16, device="cuda")
    case.by("auto")(**case.inputs)
    assert len(calls) == 1


def test_offsets_beyond_32_bits() -> None:
    """Results of 2^31 elements and more."""
    rows, size = 2**17 + 8, 2**14
    gate = torch.randn(rows, size, dtype=torch.bfloat16, device="cuda")
    y = elementwise.swiglu(gate, gate)
    torch.testing.assert_close(y[-8:], F.silu(gate[-8:]) * gate[-8:])  # whose exponential is another one
    weight = torch.rand(size, dtype=torch.bfloat16, device="cuda")
    normed = elementwise.rms_norm(gate, weight, 1e-6)
    torch.testing.assert_close(normed[-8:], elementwise.rms_norm(gate[-8:], weight, 1e-6, impl="torch"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [5003, 152064])
def test_losses(dtype, vocabulary) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 256, generator=generator).to("cuda", DTYPES[dtype])
    w = (torch.randn(vocabulary, 256, generator=generator) / 16).to("cuda", DTYPES[dtype])
    labels = torch.randint(vocabulary, (3000,), generator=generator).cuda()
    labels[::7] = ops.IGNORED
    weights = torch.rand(3000, generator=generator).cuda()

    def torchs_own(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.cross_entropy((x @ w.T).to(wide), labels, reduction="none")

    first, second = (
        check(
            lambda x, w: ops.token_losses(x, w, labels, 1024), torchs_own, {"x": x, "w": w}, ["x"], [weights], 8
        )
        for _ in range(2)
    )
    assert all(torch.equal(first[part], second[part]) for part in first), "other bits the second time"


def test_memory_of_the_loss() -> None:
    x = torch.randn(8192, 3584, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    w = torch.randn(152064, 3584, dtype=torch.bfloat16, device="cuda")
    labels = torch.randint(152064, (8192,), device="cuda")
    ops.token_losses(x[:8], w, labels[:8]).sum().backward()  # the libraries' own memory
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ops.token_losses(x, w, labels).sum()
    assert torch.cuda.max_memory_allocated() - before <= 0.75e9  # logits of 2048 rows, dx, a library's workspace


def test_replayed_as_a_cuda_graph() -> None:
    case = block_cases.add_norm(64, 256, 0.5, dtype=torch.bfloat16, device="cuda")
    call = case.by("auto")
    call(**case.inputs)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h, y = call(**case.inputs)
    case.inputs["x"].mul_(2)
    graph.replay()
    wanted = call(**case.inputs)
    assert torch.equal(h, wanted[0]) and torch.equal(y, wanted[1])
