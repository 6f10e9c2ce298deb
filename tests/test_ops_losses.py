"""Cross-entropy over a frozen head by torch: against the reference, by finite differences, under a compiler."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from numllm import ops, products, reference


def head(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (11, 6), w (9, 6), labels (11,), weights (11,) with a zero."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(11, 6, generator=generator).to(dtype)
    w = torch.randn(9, 6, generator=generator).to(dtype)
    weights = torch.rand(11, generator=generator)
    weights[3] = 0
    return x, w, torch.randint(9, (11,), generator=generator), weights


@pytest.mark.parametrize("chunk", [None, 1, 4, 11, 100])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_losses_and_their_gradient(chunk, beta) -> None:
    x, w, labels, _ = head()
    labels[[2, 7]] = ops.IGNORED
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ops.token_losses(x, w, labels, chunk, beta=beta), (x,), eps=1e-6, atol=1e-7
    )
    losses = ops.token_losses(x, w, labels, chunk, beta=beta)
    counts = labels != ops.IGNORED
    expected = reference.token_losses(x, w, labels.where(counts, 0)) + beta * (x @ w.T).logsumexp(1).square()
    torch.testing.assert_close(losses, torch.where(counts, expected, 0))
    if not beta:
        torch.testing.assert_close(losses, F.cross_entropy(x @ w.T, labels, reduction="none"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("native", [True, False], ids=["native", "widened"])
def test_losses_in_low_precision(monkeypatch, dtype, native) -> None:
    wide = dtype if native else torch.float32
    monkeypatch.setattr(products, "product_dtype", lambda tensor, _: wide)
    monkeypatch.setattr(products, "WIDE_BLOCK", 20)
    x, w, labels, weights = head(dtype)
    x.requires_grad_()
    losses = ops.token_losses(x, w, labels, 4)
    assert losses.dtype == torch.float32
    (losses * weights).sum().backward()
    exact = x.detach().double().requires_grad_()
    true = reference.token_losses(exact, w.double(), labels)
    (true * weights).sum().backward()
    rough = x.detach().requires_grad_()
    rough_losses = F.cross_entropy((rough @ w.T).float(), labels, reduction="none")
    (rough_losses * weights).sum().backward()
    pairs = ((losses.detach(), true.detach(), rough_losses.detach()), (x.grad, exact.grad, rough.grad))
    for got, want, low in pairs:
        allowed = (low.double() - want).abs().max() + torch.finfo(dtype).eps * want.abs().max()
        assert (got.double() - want).abs().max() <= allowed


def test_losses_of_large_logits_are_finite() -> None:
    x, w, labels, _ = head(torch.float32)
    x = (x * 1e4).requires_grad_()
    losses = ops.token_losses(x, w, labels)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(x.grad).all()
    torch.testing.assert_close(losses, F.cross_entropy(x @ w.T, labels, reduction="none"))


def test_what_needs_no_gradient_forms_none(monkeypatch) -> None:
    x, w, labels, _ = head()
    monkeypatch.setattr(products, "times_weight", None)
    with torch.no_grad():
        losses = ops.token_losses(x.requires_grad_(), w, labels)
    assert not losses.requires_grad
    assert not ops.token_losses(x.detach(), w, labels).requires_grad


def test_no_rows() -> None:
    x, w, labels, _ = head()
    x = x[:0].requires_grad_()
    losses = ops.token_losses(x, w, labels[:0])
    losses.sum().backward()
    assert losses.shape == (0,) and x.grad.shape == (0, 6)


def test_backward_twice_gives_the_same_and_a_second_derivative_is_refused() -> None:
    x, w, labels, weights = head()
    x.requires_grad_()
    losses = (ops.token_losses(x, w, labels).square() * weights).sum()
    first, second = (torch.autograd.grad(losses, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (gradient,) = torch.autograd.grad(losses, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_rows_at_a_time_follow_from_memory() -> None:
    assert ops.head_rows(152064, 2, cuda=True) == 2048
    assert ops.head_rows(32000, 2, cuda=True) == 2**29 // 64000
    assert ops.head_rows(152064, cuda=False) == 256
    assert ops.head_rows(1000, cuda=False) == 2**25 // 4000


def test_a_compiler_sees_one_operator() -> None:
    x, w, labels, weights = head(torch.float32)
    x.requires_grad_()

    def step(x: Tensor) -> Tensor:
        return ops.token_losses(x.sin(), w, labels, 4) * weights

    compiled, expected = torch.compile(step, backend="aot_eager", fullgraph=True)(x), step(x)
    assert torch.equal(compiled, expected)
    given = torch.randn(11, generator=torch.Generator().manual_seed(5))
    found, wanted = (torch.autograd.grad(losses, x, given)[0] for losses in (compiled, expected))
    assert torch.equal(found, wanted)
    torch.library.opcheck(torch.ops.numllm.token_losses, (x, w, labels, 4, 0.1, False, True))


def test_wrong_inputs_are_refused() -> None:
    x, w, labels, _ = head()
    with pytest.raises(ValueError, match=r"labels must be in 0..8 or -100, got -1..8"):
        ops.token_losses(x, w, labels.masked_fill(labels == labels[0], -1))
    with pytest.raises(ValueError, match=r"labels must be \(11,\)"):
        ops.token_losses(x, w, labels[:4])
    with pytest.raises(ValueError, match="w must be frozen"):
        ops.token_losses(x, w.clone().requires_grad_(), labels)
    with pytest.raises(TypeError, match="w must be of x's dtype"):
        ops.token_losses(x, w.float(), labels)
    with pytest.raises(TypeError, match="labels must be torch.int64"):
        ops.token_losses(x, w, labels.int())
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        ops.token_losses(x, w, labels, chunk=0)
    with pytest.raises(ValueError, match=r"x must be \(S, D\)"):
        ops.token_losses(x[:, :4], w, labels)
