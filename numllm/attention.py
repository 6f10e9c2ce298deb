"""Attention over packed rows: each token sees earlier tokens of its own document, and no mask of T × T exists.

On CUDA in 16 bit the documents of all rows go through FlashAttention as one sequence of segments
(`torch.nn.attention.varlen`, arXiv 2307.08691); elsewhere blocks of queries see the keys from where their first
document begins. A document is a run of one number in a row.

Shapes: B rows, T positions, H heads, G key/value heads, E head size.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
"""Queries in a block. Rows of no more than two blocks are attended whole, with a mask."""


@functools.cache
def _varlen() -> tuple[Callable[..., Tensor], frozenset[str]] | None:
    """torch's varlen attention and the names of its arguments; None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


class Packed:
    """The documents (B, T) of rows, as every layer of a pass needs them. Made by `packed`."""

    def __init__(self, documents: Tensor, *, varlen: bool) -> None:
        self.documents, self.varlen = documents, varlen
        fresh = torch.ones_like(documents, dtype=torch.bool)
        fresh[:, 1:] = documents[:, 1:] != documents[:, :-1]
        if varlen:
            starts = fresh.flatten().nonzero()[:, 0]
            self.ends = F.pad(starts, (0, 1), value=documents.numel()).to(torch.int32)
            self.longest = int(self.ends.diff().max())
        else:
            index = torch.arange(documents.shape[1], device=documents.device)
            begins = torch.where(fresh, index, 0).cummax(dim=1).values
            self.firsts = begins[:, ::BLOCK].amin(dim=0).tolist()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """softmax(q kᵀ / √E) v over what each token sees: q (B, H, T, E), k, v (B, G, T, E) → (B, H, T, E).

        window: how many positions back, itself included, a token sees; None: all of its document.
        """
        return self._segments(q, k, v, window) if self.varlen else self._blocks(q, k, v, window)

    def _segments(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        attention, accepted = _varlen()
        flat = [part.transpose(1, 2).flatten(0, 1) for part in (q, k, v)]  # (B T, H or G, E)
        named: dict[str, object] = {}
        if "window_size" in accepted:
            named["window_size"] = (-1 if window is None else window - 1, 0)
        else:
            named["is_causal"] = True
        if q.shape[1] != k.shape[1]:
            if "enable_gqa" in accepted:
                named["enable_gqa"] = True
            else:
                flat[1:] = [part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in flat[1:]]
        y = attention(*flat, self.ends, self.ends, self.longest, self.longest, **named)
        return y.unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2)

    def _blocks(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        count, documents = q.shape[2], self.documents
        index = torch.arange(count, device=q.device)
        parts = []
        for first, low in zip(range(0, count, BLOCK), self.firsts, strict=True):
            last = min(first + BLOCK, count)
            low = low if window is None else max(low, first - window + 1)
            query, key = index[first:last, None], index[None, low:last]
            seen = (key <= query) & (documents[:, first:last, None] == documents[:, None, low:last])
            if window is not None:
                seen = seen & (query - key < window)
            parts.append(F.scaled_dot_product_attention(
                q[:, :, first:last], k[:, :, low:last], v[:, :, low:last], attn_mask=seen[:, None],
                enable_gqa=q.shape[1] != k.shape[1],
            ))
        return torch.cat(parts, dim=2)


def packed(documents: Tensor, dtype: torch.dtype, windowed: bool) -> Packed | None:
    """How rows of these documents attend; None where plain attention with a mask is as good.

    windowed: whether a layer has a window.
    """
    if documents.is_cuda and dtype in (torch.bfloat16, torch.float16) and (found := _varlen()) is not None:
        if not windowed or "window_size" in found[1]:
            return Packed(documents, varlen=True)
    return Packed(documents, varlen=False) if documents.shape[1] > 2 * BLOCK else None
