"""Attention over packed rows: each token sees earlier tokens of its own document, and no mask of T × T exists.

On CUDA in 16 bit the documents of all rows go through FlashAttention as one sequence of segments
(`torch.nn.attention.varlen`, arXiv 2307.08691); elsewhere blocks of queries see the keys from where their first
document begins. A document is a run of one number in a row. Where documents are trees each branch is a segment, or a
part of a block, whose keys are its trunk's and its own.

Shapes: B rows, T positions, H heads, G key/value heads, E head size.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
"""Queries in a block of packed rows. Rows of no more than two blocks are attended whole, with a mask."""
_HALVES = (torch.bfloat16, torch.float16)
TREE_BLOCK = 512
"""Queries in a block of trees, which gather the keys they see. Shorter rows are attended whole, with a mask."""


@functools.cache
def _varlen() -> tuple[Callable[..., Tensor], frozenset[str]] | None:
    """torch's varlen attention and the names of its arguments; None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / √E) v over what each query sees: q (B, H, T, E), k, v (B, G, S, E) → (B, H, T, E).

    mask: broadcast to (B, 1, T, S), True where seen, or what is added; causal: torch's, without a mask.

    On CUDA torch has a kernel for several queries' heads to a key's, in 16 bits without a mask, and one for masks and
    fp32, but none for both: all T × S scores would be written. There keys are repeated for the latter.
    """
    groups = q.shape[1] // k.shape[1]
    if groups == 1 or not q.is_cuda or (mask is None and q.dtype in _HALVES):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=groups > 1)
    return _ungrouped(q, k, v, mask, causal)


def _ungrouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The same with as many heads of keys as of queries; a single query's heads become queries of their key's head."""
    if q.shape[2] == 1 and not causal:
        y = F.scaled_dot_product_attention(q.reshape(*k.shape[:2], -1, q.shape[3]), k, v, attn_mask=mask)
        return y.reshape(q.shape)
    k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class Ends:
    """Where segments that follow on one another begin and the last ends, (N + 1,) int32, and the longest's length."""

    def __init__(self, ends: Tensor) -> None:
        self.at = ends.to(torch.int32)
        self.longest = int(self.at.diff().max())


def _rows_joined(x: Tensor) -> Tensor:
    """(B, H, T, E) → (B T, H, E)."""
    return x.transpose(1, 2).flatten(0, 1)


def _rows_parted(y: Tensor, like: Tensor) -> Tensor:
    """(B T, H, E) → (B, H, T, E), B and T those of `like`."""
    return y.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)


def _segments(q: Tensor, k: Tensor, v: Tensor, ends: Ends, key_ends: Ends, window: int | None) -> Tensor:
    """Segment by segment, the last query seeing the last key: q (M, H, E), k, v (S, G, E) → (M, H, E)."""
    attention, accepted = _varlen()
    named: dict[str, object] = {}
    if "window_size" in accepted:
        named["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        named["is_causal"] = True
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in accepted:
            named["enable_gqa"] = True
        else:
            k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
    return attention(q, k, v, ends.at, key_ends.at, ends.longest, key_ends.longest, **named)


class Packed:
    """The documents (B, T) of rows, as every layer of a pass needs them. Made by `packed`."""

    def __init__(self, documents: Tensor, *, varlen: bool) -> None:
        self.documents, self.varlen = documents, varlen
        fresh = torch.ones_like(documents, dtype=torch.bool)
        fresh[:, 1:] = documents[:, 1:] != documents[:, :-1]
        if varlen:
            starts = fresh.flatten().nonzero()[:, 0]
            self.ends = Ends(F.pad(starts, (0, 1), value=documents.numel()))
        else:
            index = torch.arange(documents.shape[1], device=documents.device)
            begins = torch.where(fresh, index, 0).cummax(dim=1).values
            self.firsts = begins[:, ::BLOCK].amin(dim=0).tolist()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """softmax(q kᵀ / √E) v over what each token sees: q (B, H, T, E), k, v (B, G, T, E) → (B, H, T, E).

        window: how many positions back, itself included, a token sees; None: all of its document.
        """
        if self.varlen:
            flat = [_rows_joined(part) for part in (q, k, v)]
            return _rows_parted(_segments(*flat, self.ends, self.ends, window), q)
        return self._blocks(q, k, v, window)

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
            parts.append(attend(q[:, :, first:last], k[:, :, low:last], v[:, :, low:last], seen[:, None]))
        return torch.cat(parts, dim=2)


class Run(NamedTuple):
    """Tokens start..stop − 1 of one branch of a tree, of all rows put one after the other."""

    start: int
    stop: int
    before: list[tuple[int, int]]
    """Spans of the earlier tokens that they see, in order."""
    depth: int
    """How many those are: the position of the first token."""


class Trees:
    """Documents (B, T) that are trees, by the branches (B, T) of their tokens. Made by `trees`.

    A token sees earlier tokens of its document that are on the trunk, branch 0, or on its own branch. positions
    (B, T) int64 are counted along them.
    """

    def __init__(self, documents: Tensor, branches: Tensor, *, varlen: bool) -> None:
        self.varlen, self.device, (self.rows, self.length) = varlen, documents.device, documents.shape
        fresh = torch.ones_like(documents, dtype=torch.bool)
        fresh[:, 1:] = documents[:, 1:] != documents[:, :-1]
        turns = fresh.clone()
        turns[:, 1:] |= branches[:, 1:] != branches[:, :-1]
        self.documents, self.branches = fresh.flatten().cumsum(0), branches.flatten()
        starts = turns.flatten().nonzero()[:, 0]
        self.runs = _runs(
            self.documents[starts].tolist(), self.branches[starts].tolist(), [*starts.tolist(), documents.numel()]
        )
        lengths, depths = torch.tensor([(run.stop - run.start, run.depth) for run in self.runs], device=self.device).T
        index = torch.arange(documents.numel(), device=self.device)
        self.positions = (index + (depths - starts).repeat_interleave(lengths)).view(documents.shape)
        if varlen:
            self.keys = torch.cat([_path(run, run.start, run.stop, None) for run in self.runs]).to(self.device)
            self.ends = Ends(F.pad(lengths.cumsum(0), (1, 0)))
            self.key_ends = Ends(F.pad((lengths + depths).cumsum(0), (1, 0)))
        self._masks: dict[int | None, Tensor] = {}
        self._parts: dict[int | None, list[tuple[slice, Tensor, Tensor]]] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """As `Packed.attend`."""
        if self.varlen:
            flat = [_rows_joined(part) for part in (q, k, v)]
            flat[1:] = [part[self.keys] for part in flat[1:]]
            return _rows_parted(_segments(*flat, self.ends, self.key_ends, window), q)
        if self.length <= TREE_BLOCK:
            if window not in self._masks:
                index = torch.arange(self.documents.numel(), device=self.device).view(self.rows, self.length)
                self._masks[window] = self._mask(index, index, window, q.dtype)[:, None]
            return attend(q, k, v, self._masks[window])
        if window not in self._parts:
            self._parts[window] = self._blocks(window, q.dtype)
        q, k, v = (part.transpose(0, 1).flatten(1, 2)[None] for part in (q, k, v))  # (1, H or G, B T, E)
        y = torch.cat([
            attend(q[:, :, queries], k[:, :, keys], v[:, :, keys], mask)
            for queries, keys, mask in self._parts[window]
        ], dim=2)
        return y[0].unflatten(1, (self.rows, self.length)).transpose(0, 1)

    def _blocks(self, window: int | None, dtype: torch.dtype) -> list[tuple[slice, Tensor, Tensor]]:
        """(queries, indexes of the keys that any of them sees (S,), mask (1, 1, queries, S)) of all tokens."""
        found = []
        for first in range(0, self.documents.numel(), TREE_BLOCK):
            last = min(first + TREE_BLOCK, self.documents.numel())
            paths = [
                _path(run, max(first, run.start), min(last, run.stop), window)
                for run in self.runs if run.start < last and first < run.stop
            ]
            keys = torch.cat(paths).unique().to(self.device)
            queries = torch.arange(first, last, device=self.device)
            found.append((slice(first, last), keys, self._mask(queries[None], keys[None], window, dtype)[:, None]))
        return found

    def _mask(self, queries: Tensor, keys: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
        """(N, Q, S) of indexes (N, Q) and (N, S): 0 where a query sees a key, else −∞. In the dtype of attention, so
        that all layers share it: of a bool each would make its own and keep it for backward.
        """
        queries, keys, positions = queries[..., :, None], keys[..., None, :], self.positions.flatten()
        seen = (keys <= queries) & (self.documents[keys] == self.documents[queries])
        seen = seen & ((self.branches[keys] == 0) | (self.branches[keys] == self.branches[queries]))
        if window is not None:
            seen = seen & (positions[queries] - positions[keys] < window)
        return torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, -math.inf)


def _runs(documents: list[int], branches: list[int], bounds: list[int]) -> list[Run]:
    """The runs of one document and branch, which begin and end at `bounds`."""
    runs: list[Run] = []
    of_document: list[tuple[int, int, int]] = []  # branch and span of the document's runs so far
    for place, (document, branch) in enumerate(zip(documents, branches, strict=True)):
        if not place or document != documents[place - 1]:
            of_document = []
        before = [(start, stop) for other, start, stop in of_document if other in (0, branch)]
        start, stop = bounds[place : place + 2]
        runs.append(Run(start, stop, before, sum(stop - start for start, stop in before)))
        of_document.append((branch, start, stop))
    return runs


def _path(run: Run, first: int, last: int, window: int | None) -> Tensor:
    """Indexes, in order, of the tokens that any of the run's tokens first..last − 1 sees."""
    whole = torch.cat([torch.arange(*span) for span in (*run.before, (run.start, last))])
    return whole if window is None else whole[max(run.depth + first - run.start - window + 1, 0) :]


def _takes_varlen(documents: Tensor, dtype: torch.dtype, size: int, windowed: bool) -> bool:
    """FlashAttention takes heads of up to 256 features, a multiple of 8."""
    if not documents.is_cuda or dtype not in _HALVES or size % 8 or size > 256 or (found := _varlen()) is None:
        return False
    return not windowed or "window_size" in found[1]


def packed(documents: Tensor, dtype: torch.dtype, size: int, windowed: bool) -> Packed | None:
    """How rows of these documents attend; None where plain attention with a mask is as good.

    size: of a head; windowed: whether a layer has a window.
    """
    varlen = _takes_varlen(documents, dtype, size, windowed)
    return Packed(documents, varlen=varlen) if varlen or documents.shape[1] > 2 * BLOCK else None


def trees(documents: Tensor, branches: Tensor, dtype: torch.dtype, size: int, windowed: bool) -> Trees:
    """How rows of these trees attend; see `packed`."""
    return Trees(documents, branches, varlen=_takes_varlen(documents, dtype, size, windowed))
