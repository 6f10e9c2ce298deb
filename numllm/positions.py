"""What the layers of a forward pass share: the cache, rotations, and which keys each query sees.

Shapes: B rows, T positions, G key/value heads, E head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .attention import packed, trees
from .config import ModelConfig, Rope
from .errors import NumLLMError
from .rope import frequencies, rotations

PADDING = -1
"""Document number of padding positions."""


class Cache:
    """Keys and values of the positions seen so far, preallocated.

    keys, values (layers, B, G, length, E); documents (B, length) int32; `used` positions are filled. lengths: how long
    the sequences were that filled it first, where the rotations depend on that.
    """

    def __init__(self, config: ModelConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device):
        shape = (config.layers, batch, config.kv_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.documents = torch.zeros((batch, length), dtype=torch.int32, device=device)
        self.lengths: Tensor | None = None
        self.padded = False
        self.used = 0

    @property
    def length(self) -> int:
        """Positions there is room for."""
        return self.keys.shape[3]


class Plan:
    """What every layer of one forward pass needs: rotations, and which keys each query sees."""

    def __init__(
        self, config: ModelConfig, speeds: Tensor, tokens: Tensor, positions: Tensor | None,
        documents: Tensor | None, branches: Tensor | None, cache: Cache | None, dtype: torch.dtype,
    ) -> None:
        batch, count = tokens.shape
        device = tokens.device
        self.cache = cache
        self.start = cache.used if cache else 0
        self.stop = self.start + count
        if cache is not None:
            if self.stop > cache.length:
                raise NumLLMError(f"the cache has room for {cache.length} positions, {self.stop} were wanted")
            if documents is not None:
                cache.documents[:, self.start : self.stop] = documents
                cache.padded = True
            documents = cache.documents[:, : self.stop] if cache.padded else None
        lengths = self.packed = None
        rope = config.rope
        if branches is not None:
            if documents is None or cache is not None:
                raise ValueError("branches need documents, and no cache")
            self.packed = trees(documents, branches, dtype, config.head_dim, windowed=any(config.windows))
            positions = self.packed.positions
            if rope.by_length and int(positions.max()) >= rope.original_context:
                raise NumLLMError(
                    f"branches of more than the {rope.original_context} positions of the original context cannot share "
                    "a trunk: this model's rotations depend on the length of the text; run them one by one"
                )
        elif rope.by_length:
            lengths = self._lengths(rope, documents, positions, count, device)
        if positions is None:
            positions = _positions(documents, count, self.start, device).expand(batch, count)
        if lengths is not None:
            speeds = frequencies(rope, config.rotary_dim, lengths)[:, None]
        angles = rotations(positions[:, None, :, None].float() * speeds, neighbours=config.family.rotates_neighbours)
        self.cos = (angles.cos() * rope.attention_factor).to(dtype)
        self.sin = (angles.sin() * rope.attention_factor).to(dtype)
        self.query_scale = None
        if config.logn_context is not None:
            long = (positions + 1).clamp(min=config.logn_context).double().log() / math.log(config.logn_context)
            self.query_scale = long[:, None, :, None].to(dtype)
        if documents is not None and branches is None and cache is None:
            self.packed = packed(documents, dtype, config.head_dim, windowed=any(config.windows))
        self.masks = {} if self.packed is not None else {
            window: _mask(documents, count, self.start, self.stop, window, device) for window in set(config.windows)
        }
        self.causal = self.start == 0 and count > 1

    def _lengths(
        self, rope: Rope, documents: Tensor | None, positions: Tensor | None, count: int, device: torch.device
    ) -> Tensor:
        """(B or 1, count or 1): the length, up to now, of the sequence that each token belongs to.

        Qwen keeps the rotations of the text it began with; others turn each token by the length at its time.
        """
        if positions is not None:
            found = positions.amax(-1, keepdim=True) + 1
        elif documents is None:
            found = torch.full((1, 1), self.stop, device=device)
        else:
            found = _run_lengths(documents)[:, -count:]
        if self.start and count > 1 and self.stop > rope.original_context and int(found.max()) > rope.original_context:
            raise NumLLMError(
                f"a text of more than the {rope.original_context} positions of the original context cannot be read in "
                "portions: this model's rotations depend on its length; read it at once"
            )
        if rope.kind != "qwen" or self.cache is None:
            return found
        if self.start and self.cache.lengths is not None:
            return self.cache.lengths
        self.cache.lengths = found[:, -1:]
        return found


def _run_lengths(documents: Tensor) -> Tensor:
    """(B, T): of how many equal document numbers in a row each is one."""
    ahead = _positions(documents.flip(1), documents.shape[1], 0, documents.device).flip(1)
    return _positions(documents, documents.shape[1], 0, documents.device) + ahead + 1


def _positions(documents: Tensor | None, count: int, start: int, device: torch.device) -> Tensor:
    """(B or 1, count): positions counted from the start of each run of one document number."""
    if documents is None:
        return torch.arange(start, start + count, device=device)[None]
    index = torch.arange(documents.shape[1], device=device).expand_as(documents)
    fresh = torch.ones_like(documents, dtype=torch.bool)
    fresh[:, 1:] = documents[:, 1:] != documents[:, :-1]
    begin = torch.where(fresh, index, 0).cummax(dim=1).values
    return (index - begin)[:, -count:]


def _mask(
    documents: Tensor | None, count: int, start: int, stop: int, window: int | None, device: torch.device
) -> Tensor | None:
    """(B or 1, 1, count, stop) bool, True where seen; None when plain causality, or nothing, says it all."""
    narrow = window is not None and window < stop
    if documents is None and not narrow and (start == 0 or count == 1):
        return None
    query = torch.arange(start, stop, device=device)[:, None]
    key = torch.arange(stop, device=device)[None]
    seen = key <= query
    if narrow:
        seen = seen & (query - key < window)
    seen = seen[None, None]
    if documents is not None:
        seen = seen & (documents[:, None, start:stop, None] == documents[:, None, None, :stop])
    return seen


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, bool]:
    """(tokens (B, T) int64, documents (B, T) int32, whether any is padding): rows of ids that end together.

    Padding stands on the left, outside every document, so each row reads as it would alone.
    """
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    documents = torch.full((len(rows), width), PADDING, dtype=torch.int32)
    for row, ids in enumerate(rows):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        documents[row, width - len(ids) :] = 0
    return tokens.to(device), documents.to(device), any(len(ids) < width for ids in rows)
