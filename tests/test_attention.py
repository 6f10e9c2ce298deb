"""Attention over packed rows: the same as with the whole mask, in blocks of queries and as segments."""

from __future__ import annotations

import pytest
import torch
from models import save, transformers_model

from numllm import attention
from numllm.attention import Packed
from numllm.model import PADDING, load_model


def documents():
    rows = [[0] * 9 + [1] * 1 + [2] * 14 + [PADDING] * 6, [0] * 30, [0] * 3 + [1] * 13 + [2] * 14]
    return torch.tensor(rows, dtype=torch.int32)


def inputs(device="cpu", dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(3, heads, 30, 8, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for heads in (4, 2, 2)
    ]


def whole(q, k, v, rows, window):
    """With the mask of all pairs."""
    index = torch.arange(30, device=q.device)
    seen = (index[None] <= index[:, None]) & (rows[:, :, None] == rows[:, None, :])
    if window is not None:
        seen = seen & (index[:, None] - index[None] < window)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], enable_gqa=True)


def compare(packed, window, device="cpu", dtype=torch.float64, tolerance=1e-12):
    found, expected = [], []
    for results, run in (
        (found, lambda q, k, v: packed.attend(q, k, v, window)),
        (expected, lambda q, k, v: whole(q, k, v, documents().to(device), window)),
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


def segment_by_segment(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    """What torch documents of its varlen attention, in plain torch."""
    assert torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q.dtype == torch.int32 and max_q == max_k
    assert max_q == int(cu_seq_q.diff().max()) and window_size[1] == 0
    parts = []
    for first, last in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        q, k, v = (part[first:last].transpose(0, 1)[None] for part in (query, key, value))
        index = torch.arange(last - first)
        distance = index[:, None] - index[None]
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


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
def test_varlen_attention_on_cuda(window):
    packed = attention.packed(documents().cuda(), torch.bfloat16, windowed=window is not None)
    assert packed is not None and packed.varlen
    compare(packed, window, "cuda", torch.bfloat16, tolerance=3e-2)


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
