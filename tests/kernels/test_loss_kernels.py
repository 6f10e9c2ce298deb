"""The loss by its kernel against the reference: every kind of row, part of memory and vocabulary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerance import check
from torch import Tensor

from numllm import ops

pytestmark = pytest.mark.usefixtures("poisoned", "by_kernels")


def torchs_own(x: Tensor, w: Tensor, labels: Tensor, beta: float) -> Tensor:
    """The logits of all rows, rounded to x's dtype, and the loss in fp32, in fp64 for fp64: what users would write."""
    wide = torch.promote_types(x.dtype, torch.float32)
    logits = (x @ w.T).to(wide)
    counts = labels != ops.IGNORED
    lse = logits.logsumexp(1)
    picked = logits.gather(1, labels.where(counts, 0)[:, None])[:, 0]
    return torch.where(counts, lse - picked + beta * lse.square(), 0)


@settings(
    max_examples=15, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixtures hold nothing that a run changes
)
@given(
    rows=st.integers(0, 20), size=st.integers(2, 700), chunk=st.integers(1, 25), beta=st.sampled_from([0.0, 0.02]),
    dtype=st.sampled_from([torch.float32, torch.float16]), spread=st.sampled_from([0.1, 1.0, 20.0]),
    turned=st.booleans(), ignored=st.integers(0, 4),
)
def test_losses_and_their_gradient(device, rows, size, chunk, beta, dtype, spread, turned, ignored) -> None:
    generator = torch.Generator().manual_seed(rows * 1000 + size)
    x = (torch.randn(rows, 24, generator=generator) * spread).to(dtype).to(device)
    w = (torch.randn(size, 24, generator=generator) / 5).to(dtype).to(device)
    labels = torch.randint(size, (2, rows), generator=generator).to(device)[0]
    labels[::5][:ignored] = ops.IGNORED
    if turned:
        x, w = x.T.contiguous().T, w.T.contiguous().T
    upstream = (torch.rand(rows, generator=generator) * 3).to(device)  # what rows weigh
    check(
        lambda x, w: ops.token_losses(x, w, labels, chunk, beta=beta, impl="triton"),
        lambda x, w: torchs_own(x, w, labels, beta), {"x": x, "w": w}, ["x"], [upstream],
        units=8,  # two products in a row
    )


def test_more_logits_than_a_program_takes_at_once(device) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, generator=generator).to(device)
    w = torch.randn(40_001, 8, generator=generator).to(device)
    labels = torch.tensor([0, 40_000, 17_000], device=device)
    check(
        lambda x, w: ops.token_losses(x, w, labels, impl="triton"),
        lambda x, w: torchs_own(x, w, labels, 0.0), {"x": x, "w": w}, ["x"], [torch.ones(3, device=device)],
    )


def test_labels_that_are_no_column_and_logits_that_are_no_number_are_seen(families, device) -> None:
    logits = torch.zeros(4, 48, device=device)
    logits[3, 5] = float("nan")
    losses = torch.empty(4, device=device)
    labels = torch.tensor([0, 40, -1, 2], device=device)
    families["cross_entropy"].cross_entropy(logits, labels, losses, columns=40)
    assert losses.isfinite().tolist() == [True, False, False, False]


def test_room_beside_the_columns_is_not_read(families, device) -> None:
    logits = torch.full((3, 64), float("nan"), device=device)
    logits[:, :37] = torch.randn(3, 37, generator=torch.Generator().manual_seed(1)).to(device)
    before, losses = logits[:, :37].clone(), torch.empty(3, device=device)
    labels = torch.tensor([0, 36, 5], device=device)
    families["cross_entropy"].cross_entropy(logits, labels, losses, columns=37, gradient=False)
    assert torch.equal(logits[:, :37], before)
    torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(before, labels, reduction="none"))
    families["cross_entropy"].cross_entropy(logits, labels, losses, columns=37)
    one = torch.nn.functional.one_hot(labels, 37)
    torch.testing.assert_close(logits[:, :37], before.softmax(1) - one)


def test_same_bits_twice(device) -> None:
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(3)).to(device).requires_grad_()
    w, labels = torch.randn(333, 16, device=device), torch.arange(9, device=device)
    runs = []
    for _ in range(2):
        losses = ops.token_losses(x, w, labels, 4, impl="triton")
        runs.append((losses, *torch.autograd.grad(losses.sum(), x)))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
