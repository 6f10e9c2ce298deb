"""Log-probabilities of tokens in many prompts, computed once where prompts begin alike.

Prompts that begin alike (the examples of a subject, the stem of a question's options) run through the model
once; their keys and values are then shared. The head runs on the positions whose next token is asked for.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import EvaluationError
from ..files import Progress, no_progress
from ..model import Transformer
from ..positions import Cache, left_padded

BATCH_TOKENS = 2048
"""So many keep a GPU busy."""
CPU_ELEMENTS = 5 << 19
"""Of an MLP's state at once on a CPU, 10 MiB in fp32: more fall out of its caches between one product and the next."""
SHARED_AT_LEAST = 16
"""Shorter common beginnings are computed for each prompt: a second pass would cost more than it saves."""
CACHED_PER_BATCH = 8
"""Positions of keys and values held, in multiples of batch_tokens."""
BATCH_AT_LEAST, PADDED_DOWN_TO = 0.2, 0.8
"""A batch of this share of batch_tokens takes no prompt shorter than this share of its longest."""
HEAD_ELEMENTS = 1 << 26
"""Logits held at once."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """ids, and targets (position, token): log P(token | ids[: position + 1]) is wanted for each."""

    ids: tuple[int, ...]
    targets: tuple[tuple[int, int], ...]


def log_probabilities(
    model: Transformer, groups: Sequence[Sequence[Probe]], *, batch_tokens: int = BATCH_TOKENS,
    progress: Progress = no_progress, description: str = "scoring",
) -> list[list[list[float]]]:
    """The log-probabilities (natural, fp32) that each probe of each group asks for, in order.

    The probes of a group are expected to begin alike; what they share is computed once. At most `batch_tokens` new
    positions (on a CPU also what CPU_ELEMENTS allows) go through the model at once, longest prompts first, padded on
    the right, where causal attention keeps padding from being seen. EvaluationError when the model gives NaN or lacks
    ids.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be positive, got {batch_tokens}")
    largest = max((id_ for group in groups for probe in group for id_ in probe.ids), default=0)
    if largest >= model.config.vocab_size:
        raise EvaluationError(
            f"the tokenizer gives the id {largest}, the model knows {model.config.vocab_size}; "
            "it is the tokenizer of another model"
        )
    if model.device.type == "cpu":
        batch_tokens = min(batch_tokens, max(1, CPU_ELEMENTS // model.config.intermediate_size))
    found: list[list[list[float]]] = [[[] for _ in group] for group in groups]
    done = _run(model, groups, batch_tokens)
    total = sum(map(len, groups))
    for g, p, values in progress(done, total=total, description=description, unit="prompt"):
        if not all(map(math.isfinite, values)):
            raise EvaluationError(
                f"the model gives NaN or infinity in {model.dtype}; use --dtype float32 or check its weights"
            )
        found[g][p] = values
    return found


_Place = tuple[int, int]  # (group, probe in the group)


def _run(
    model: Transformer, groups: Sequence[Sequence[Probe]], batch_tokens: int
) -> Iterator[tuple[int, int, list[float]]]:
    shared = [_shared(group) if _may_share(model, group) else 0 for group in groups]
    alone = [(g, p) for g, group in enumerate(groups) if not shared[g] for p in range(len(group))]
    for places in _batches(alone, lambda place: len(groups[place[0]][place[1]].ids), batch_tokens):
        yield from _score(model, groups, places, None, {})
    together = [g for g, length in enumerate(shared) if length]
    for bundle in _batches(together, lambda g: shared[g], batch_tokens):
        prefix = _prefill(model, [groups[g][0].ids[: shared[g]] for g in bundle])
        skip = {g: shared[g] for g in bundle}
        row = {g: index for index, g in enumerate(bundle)}
        places = [(g, p) for g in bundle for p in range(len(groups[g]))]
        for part in _batches(
            places, lambda place, skip=skip: len(groups[place[0]][place[1]].ids) - skip[place[0]],
            batch_tokens, held=prefix.used,
        ):
            width = max(len(groups[g][p].ids) - skip[g] for g, p in part)
            cache = _fork(model, prefix, [row[g] for g, _ in part], width)
            yield from _score(model, groups, part, cache, skip)


def _shared(group: Sequence[Probe]) -> int:
    """Tokens that all probes of a group begin with, before the first position asked for; 0 when few."""
    if len(group) < 2:
        return 0
    common = len(os.path.commonprefix([probe.ids for probe in group]))
    length = min(common, min(position for probe in group for position, _ in probe.targets))
    return length if length >= SHARED_AT_LEAST else 0


def _may_share(model: Transformer, group: Sequence[Probe]) -> bool:
    """Whether what probes begin with has the same keys whatever follows: not where rotations go by a text's length."""
    rope = model.config.rope
    return not rope.by_length or max(len(probe.ids) for probe in group) <= rope.original_context


def _batches(items: Sequence[Any], length: Any, batch_tokens: int, held: int = 0) -> Iterator[list[Any]]:
    """Items, longest first, in batches of rows × longest ≤ batch_tokens (one item at least).

    held: cached positions of each row, so that rows × (held + longest) ≤ CACHED_PER_BATCH · batch_tokens. A batch
    of some size ends where items get much shorter: they would be padding for the most part.
    """
    batch: list[Any] = []
    rows, longest = 0, 1
    for item in sorted(items, key=lambda item: -length(item)):
        shorter = len(batch) * longest >= batch_tokens * BATCH_AT_LEAST and length(item) < longest * PADDED_DOWN_TO
        if len(batch) == rows or shorter:
            if batch:
                yield batch
            batch, longest = [], max(length(item), 1)
            rows = max(min(batch_tokens // longest, CACHED_PER_BATCH * batch_tokens // (held + longest)), 1)
        batch.append(item)
    if batch:
        yield batch


# no_grad, not inference_mode: modules may keep tensors made here, and training could not save those.
@torch.no_grad()
def _prefill(model: Transformer, prefixes: Sequence[tuple[int, ...]]) -> Cache:
    """Keys and values of prefixes, one a row, padded on the left."""
    tokens, documents, padded = left_padded(prefixes, model.device)
    cache = model.new_cache(*tokens.shape)
    model.hidden(tokens, documents=documents if padded else None, cache=cache, select=tokens.new_empty(0))
    return cache


@torch.no_grad()
def _fork(model: Transformer, cache: Cache, rows: list[int], room: int) -> Cache:
    """A cache whose rows begin as the given rows of `cache`, with room for `room` more positions."""
    fork = model.new_cache(len(rows), cache.used + room)
    index = torch.tensor(rows, device=model.device)
    for mine, theirs in ((fork.keys, cache.keys), (fork.values, cache.values)):
        mine[:, :, :, : cache.used] = theirs[:, index, :, : cache.used]
    fork.documents[:, : cache.used] = cache.documents[index, : cache.used]
    fork.padded, fork.used = cache.padded, cache.used
    return fork


@torch.no_grad()
def _score(
    model: Transformer, groups: Sequence[Sequence[Probe]], places: Sequence[_Place], cache: Cache | None,
    skip: Mapping[int, int],
) -> list[tuple[int, int, list[float]]]:
    """(group, probe, values) of probes, run without their first skip[group] tokens, which the cache holds."""
    probes = [groups[g][p] for g, p in places]
    skips = [skip.get(g, 0) for g, _ in places]
    width = max(len(probe.ids) - gone for probe, gone in zip(probes, skips, strict=True))
    tokens = torch.zeros(len(probes), width, dtype=torch.int64)
    picked: dict[int, int] = {}  # flat position → its place among those picked
    asked, wanted = [], []
    for row, (probe, gone) in enumerate(zip(probes, skips, strict=True)):
        tokens[row, : len(probe.ids) - gone] = torch.tensor(probe.ids[gone:])
        for position, token in probe.targets:
            asked.append(picked.setdefault(row * width + position - gone, len(picked)))
            wanted.append(token)
    select = torch.tensor(list(picked), device=model.device)
    values = iter(_next_token(model, model.hidden(tokens.to(model.device), cache=cache, select=select), asked, wanted))
    return [
        (g, p, [next(values) for _ in probe.targets]) for (g, p), probe in zip(places, probes, strict=True)
    ]


def _next_token(model: Transformer, x: Tensor, rows: list[int], tokens: list[int]) -> list[float]:
    """log softmax(head(x[row]))[token] for each pair; x (S, D)."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    found = [0.0] * len(rows)
    size = max(HEAD_ELEMENTS // model.config.vocab_size, 1)
    at = 0
    for first in range(0, len(x), size):
        logits = model.lm_head(x[first : first + size]).float()
        begin = at
        while at < len(order) and rows[order[at]] < first + size:
            at += 1
        part = order[begin:at]
        row = torch.tensor([rows[index] - first for index in part], device=x.device)
        token = torch.tensor([tokens[index] for index in part], device=x.device)
        chosen = logits[row, token] - logits.logsumexp(-1)[row]
        for index, value in zip(part, chosen.tolist(), strict=True):
            found[index] = value
    return found


def span_probe(ids: tuple[int, ...], spans: Iterable[tuple[int, int]]) -> Probe:
    """The probe that asks for the tokens of half-open spans of `ids`, each given all before it."""
    return Probe(ids, tuple((at - 1, ids[at]) for first, last in spans for at in range(first, last)))
