"""Attention over packed rows and trees: the same as with the whole mask, in blocks of queries and as segments."""

from __future__ import annotations

import pytest
import torch
from models import save, transformers_model

from numllm import attention
from numllm.attention import Packed, Trees
from numllm.model import load_model
from numllm.positions import PADDING


def documents():
    rows = [[0] * 9 + [1] * 1 + [2] * 14 + [PADDING] * 6, [0] * 30, [0] * 3 + [1] * 13 + [2] * 14]
    return torch.tensor(rows, dtype=torch.int32)


def branches():
    """Trees, with trunks that go on after a branch in the first row and the last, and a branch in two pieces."""
    rows = [
        [0] * 4 + [1] * 2 + [2] * 3 + [0] + [0] * 5 + [1] * 3 + [0] * 2 + [2] * 4 + [0] * 6,
        [1] * 11 + [2] * 19,
        [0] + [1] + [2] + [0] * 9 + [3] * 4 + [0] * 2 + [1] * 4 + [2] * 4 + [1] * 4,
    ]
    return torch.tensor(rows, dtype=torch.int32)


def inputs(device="cpu", dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(3, heads, 30, 8, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for heads in (4, 2, 2)
    ]


def whole(q, k, v, rows, window, of=None):
    """With the mask of all pairs; of: branches."""
    index = torch.arange(30, device=q.device)
    seen = (index[None] <= index[:, None]) & (rows[:, :, None] == rows[:, None, :])
    if of is not None:
        seen = seen & ((of[:, None, :] == 0) | (of[:, None, :] == of[:, :, None]))
    if window is not None:
        positions = seen.sum(-1)
        seen = seen & (positions[:, :, None] - positions[:, None, :] < window)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], enable_gqa=True)


def compare(packed, window, device="cpu", dtype=torch.float64, tolerance=1e-12, of=None):
    found, expected = [], []
    for results, run in (
        (found, lambda q, k, v: packed.attend(q, k, v, window)),
        (expected, lambda q, k, v: whole(q, k, v, documents().to(device), window, of)),
    ):
        parts = inputs(device, dtype)
        y = run(*parts)
        real = (documents() != PADDING).to(device)[:, None, :, None]
        (y * y * real).sum().backward()
        results += [y * real, *(part.grad for part in parts)]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("block", [4, 7, 30])
def test_blocks_of_queries_give_what_the_whole_mask_gives(monkeypatch, block, window):
    monkeypatch.setattr(attention, "BLOCK", block)
    compare(Packed(documents(), varlen=False), window)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("block", [4, 7, 29, 30])
def test_trees_in_blocks_give_what_the_whole_mask_gives(monkeypatch, block, window):
    monkeypatch.setattr(attention, "TREE_BLOCK", block)
    compare(Trees(documents(), branches(), varlen=False), window, of=branches())


def test_positions_are_counted_along_trunk_and_branch():
    trees = Trees(documents(), branches(), varlen=False)
    assert trees.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 0, *range(5), *range(5, 8), 5, 6, *range(7, 11),
                                           *range(6)]
    assert trees.positions[1].tolist() == [*range(11), *range(19)]


def test_a_tree_costs_what_is_attended(monkeypatch):
    monkeypatch.setattr(attention, "TREE_BLOCK", 16)
    trunk, each, count = 8, 64, 32
    of = torch.tensor([[0] * trunk + [branch for branch in range(1, count + 1) for _ in range(each)]])
    trees = Trees(torch.zeros_like(of), of, varlen=False)
    seen = []
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, **_: seen.append(
        q.shape[2] * k.shape[2]) or q)
    q = torch.zeros(1, 1, of.numel(), 4)
    trees.attend(q, q, q, None)
    attended = count * each * (trunk + each / 2)
    assert sum(seen) < 1.5 * attended < 0.05 * of.numel() ** 2


def segment_by_segment(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    """What torch documents of its varlen attention, in plain torch."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and window_size[1] == 0
    assert max_q == int(cu_seq_q.diff().max()) and max_k == int(cu_seq_k.diff().max())
    parts = []
    for first, last, low, high in zip(*(at.tolist()[start:] for at in (cu_seq_q, cu_seq_k) for start in (0, 1)),
                                      strict=False):
        q, k, v = (part.transpose(0, 1)[None] for part in (query[first:last], key[low:high], value[low:high]))
        distance = torch.arange(high - low)[first - last :, None] - torch.arange(high - low)[None]
        seen = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] == -1))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=enable_gqa)
        parts.append(y[0].transpose(0, 1))
    return torch.cat(parts)


def segments_of_old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    """The same, as torch 2.10 has it."""
    assert is_causal and query.shape[1] == key.shape[1]
    return segment_by_segment(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=(-1, 0))


@pytest.mark.parametrize("function, window", [
    (segment_by_segment, None), (segment_by_segment, 5), (segments_of_old, None),
])
def test_segments_are_laid_out_as_varlen_attention_wants_them(monkeypatch, function, window):
    import inspect

    monkeypatch.setattr(attention, "_varlen", lambda: (function, frozenset(inspect.signature(function).parameters)))
    compare(Packed(documents(), varlen=True), window)
    compare(Trees(documents(), branches(), varlen=True), window, of=branches())


@pytest.mark.parametrize("queries", [1, 6])
def test_heads_of_a_key_as_a_gpu_attends_them(queries):
    """Where torch has no kernel for a mask and groups of heads: the same, and the same gradients."""
    parts = [part.detach()[:, :, :6] for part in inputs()]
    parts[0] = parts[0][:, :, -queries:]
    seen = documents()[:, None, 6 - queries : 6, None] >= torch.arange(6) - 3
    ways = (attention._ungrouped, lambda *given: torch.nn.functional.scaled_dot_product_attention(
        *given[:3], attn_mask=given[3], is_causal=given[4], enable_gqa=True))
    for mask, causal in ((seen, False), (None, False), *([(None, True)] if queries > 1 else [])):
        found, expected = (
            [y := way(*(q := [part.clone().requires_grad_() for part in parts]), mask, causal),
             *torch.autograd.grad(y.square().sum(), q)] for way in ways
        )
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [30, 1])
def test_a_mask_and_groups_of_heads_do_not_write_all_scores(count, dtype):
    """The backends named have no way to; they refuse what they cannot."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = inputs("cuda", dtype)
    mask = torch.ones(3, 1, count, 30, dtype=torch.bool, device="cuda")
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        y = attention.attend(q[:, :, :count], k, v, mask)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(part.double() for part in (q[:, :, :count], k, v)), attn_mask=mask, enable_gqa=True
    )
    assert (y - expected).abs().max() <= (3e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
def test_varlen_attention_on_cuda(window):
    packed = attention.packed(documents().cuda(), torch.bfloat16, 8, windowed=window is not None)
    assert packed is not None and packed.varlen
    compare(packed, window, "cuda", torch.bfloat16, tolerance=3e-2)
    trees = attention.trees(documents().cuda(), branches().cuda(), torch.bfloat16, 8, windowed=window is not None)
    assert trees.varlen
    compare(trees, window, "cuda", torch.bfloat16, tolerance=3e-2, of=branches().cuda())


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_packed_rows_give_each_document_its_own_logits(monkeypatch, tmp_path, name):
    monkeypatch.setattr(attention, "BLOCK", 8)
    model = load_model(save(transformers_model(name, vocab_size=64), tmp_path), dtype=torch.float64)
    tokens = torch.randint(0, 64, (3, 30), generator=torch.Generator().manual_seed(1))
    packed = model(tokens, documents=documents())
    for row, numbers in enumerate(documents()):
        for number in numbers.unique().tolist():
            if number != PADDING:
                inside = numbers == number
                assert torch.allclose(packed[row][inside], model(tokens[row][inside][None])[0], atol=1e-10)
