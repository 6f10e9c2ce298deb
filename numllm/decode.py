"""Logits of the next position of every row, given a cache of keys and values: step by step, or by a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .model import Transformer
from .positions import PADDING, Cache, left_padded

WAYS = ("auto", "plain", "fixed", "graph", "whole")
"""plain: the attention sees what the cache holds so far. fixed: at shapes that stay the same. graph: fixed, replayed
as a CUDA graph, so that no step waits for Python. whole: the text is run anew each time, without a cache. auto:
graph on a GPU where the model's windows allow it, else plain."""
_FIXED = ("fixed", "graph")

Decode = Callable[[Tensor], Tensor]
"""`decode(tokens)` of the chosen tokens (B,) int64 → logits (B, V) of the position after them."""


def start(
    model: Transformer, prompts: Sequence[Sequence[int]], new: int, way: str = "auto"
) -> tuple[Tensor, Decode]:
    """(logits (B, V) after the prompts, what gives those after each of up to `new` tokens more).

    Prompts of ids are padded on the left, as documents of their own, so each reads as it would alone. ValueError
    for a way that is not in WAYS or cannot be taken here.
    """
    length = max(map(len, prompts)) + new
    on_gpu = model.device.type == "cuda"
    if way == "auto":
        way = "graph" if on_gpu and _wide(model, length) else "plain"
    elif way not in WAYS or (way == "graph" and not on_gpu) or (way in _FIXED and not _wide(model, length)):
        raise ValueError(
            f"way must be one of {', '.join(WAYS)}, graph on a GPU only, fixed and graph only where every window is "
            f"longer than the {length} positions; got {way!r}"
        )
    tokens, documents, padded = left_padded(prompts, model.device)
    if way == "whole":
        return _whole(model, tokens, documents)
    cache = model.new_cache(len(prompts), length + (way in _FIXED))
    logits = model.lm_head(model.hidden(tokens, documents=documents if padded else None, cache=cache)[:, -1])
    if way == "plain":
        return logits, lambda chosen: model.lm_head(model.hidden(chosen[:, None], cache=cache)[:, -1])
    step = _FixedStep(model, cache, documents)
    return logits, step.graph() if way == "graph" else step


def _wide(model: Transformer, length: int) -> bool:
    """Whether no layer's window cuts anything off: in the fixed step places are not positions."""
    return all(window is None or window > length for window in model.config.windows)


def _whole(model: Transformer, tokens: Tensor, documents: Tensor) -> tuple[Tensor, Decode]:
    def logits() -> Tensor:
        return model.lm_head(model.hidden(tokens, documents=documents)[:, -1])

    def decode(chosen: Tensor) -> Tensor:
        nonlocal tokens, documents
        tokens = torch.cat((tokens, chosen[:, None]), 1)
        documents = torch.cat((documents, torch.zeros_like(documents[:, :1])), 1)
        return logits()

    return logits(), decode


class _FixedStep:
    """A step whose every shape and address stays the same.

    The new position always stands in the cache's last place, where the mask shows it; after the step its keys and
    values are copied to the place they belong. Places not filled yet count as padding. Where that place is, and each
    row's position, are tensors that the step itself moves on.
    """

    def __init__(self, model: Transformer, cache: Cache, documents: Tensor) -> None:
        batch, filled = documents.shape
        self.model, self.cache = model, cache
        self.tokens = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)
        self.positions = (documents != PADDING).sum(1, keepdim=True)
        self.place = torch.tensor([filled], device=model.device)
        cache.padded = True
        cache.documents[:, :filled] = documents
        cache.documents[:, filled:-1] = PADDING
        cache.documents[:, -1] = 0

    def run(self) -> Tensor:
        """Logits (B, V) after `tokens`."""
        cache = self.cache
        cache.used = cache.length - 1
        logits = self.model.lm_head(self.model.hidden(self.tokens, positions=self.positions, cache=cache)[:, -1])
        for part in (cache.keys, cache.values):
            part.index_copy_(3, self.place, part[:, :, :, -1:].clone())
        cache.documents.index_fill_(1, self.place, 0)
        self.positions += 1
        self.place += 1
        return logits

    def __call__(self, chosen: Tensor) -> Tensor:
        self.tokens.copy_(chosen[:, None])
        return self.run()

    def graph(self) -> Decode:
        """The step as one replay."""
        with torch.cuda.device(self.model.device):
            return self._graph()

    def _graph(self) -> Decode:
        state = (self.positions, self.place, self.cache.documents)
        before = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries and kernels get ready outside the graph
            self.run()
        torch.cuda.current_stream().wait_stream(side)
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.run()

        def decode(chosen: Tensor) -> Tensor:
            self.tokens.copy_(chosen[:, None])
            graph.replay()
            return logits

        return decode
