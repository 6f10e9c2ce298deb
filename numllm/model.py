"""The transformer: one decoder-only model for every family in `families.FAMILIES`.

Module names are those of the checkpoint's tensors, so a tensor's name is its place, and adapters speak of the
checkpoint's own linears, those that compute q, k and v at once among them. The code speaks of all by Llama's names:
see `layers.Part`. The linears are `torch.nn.Linear`, frozen; `lora.attach` puts adapters on them.

Shapes: B rows, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint, torch_dtype
from .collector import frozen_heap
from .config import ModelConfig
from .files import Progress, no_progress
from .layers import Block, Embedding, Linear, NormalisedHead, Part, RMSNorm
from .positions import Cache, Plan
from .rope import frequencies
from .weights import block_of, matched, read_weights

_READERS = 4
"""Most threads that read weights: a few fill what memory takes."""


class Body(Part):
    """Embedding, blocks and the last norm: what Llama's checkpoints call `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.family.names)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class Transformer(Part):
    """A decoder-only transformer; every weight frozen. Made by `load_model`, or empty from a ModelConfig."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.family.names)
        self.config = config
        self.model = Body(config)
        if config.family.normalised_head:
            self.lm_head = NormalisedHead(config.hidden_size, config.vocab_size)
        else:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.requires_grad_(False)
        self._frequencies: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights and of what flows between the blocks."""
        return self.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed_tokens.weight.device

    @property
    def linear_names(self) -> dict[str, str]:
        """See `ModelConfig.linear_names`."""
        return self.config.linear_names()

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of up to `length` positions."""
        return Cache(self.config, batch, length, self.dtype, self.device)

    def hidden(
        self, tokens: Tensor, *, positions: Tensor | None = None, documents: Tensor | None = None,
        branches: Tensor | None = None, cache: Cache | None = None, select: Tensor | None = None,
    ) -> Tensor:
        """States that the head reads, (B, T, D); or (S, D) of the positions picked by `select`, flat indexes (S,).

        tokens (B, T) int64. positions (B, T): default, counted within each document. documents (B, T) ints:
        a token sees earlier tokens of the same number only; PADDING marks padding. branches (B, T) ints: a
        document may be a tree, its trunk numbered 0; a token sees the trunk and its own branch, and positions
        are counted along them. With a cache, tokens follow what is in it. What is not selected skips the last MLP.
        """
        if self._frequencies is None or self._frequencies.device != tokens.device:
            self._frequencies = frequencies(self.config.rope, self.config.rotary_dim).to(tokens.device)
        plan = Plan(self.config, self._frequencies, tokens, positions, documents, branches, cache, self.dtype)
        x = _scaled(self.model.embed_tokens(tokens), self.config.embedding_scale)
        for block in self.model.layers[:-1]:
            x = block(x, plan)
        x = self.model.layers[-1](x, plan, select)
        if cache is not None:
            cache.used = plan.stop
        return _scaled(self.model.norm(x), self.config.head_scale)

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, documents: Tensor | None = None,
        cache: Cache | None = None, select: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); or (S, V) of the positions picked by `select`, a mask (B, T) or flat indexes (S,).

        The other arguments are those of `hidden`.
        """
        if select is not None and select.dtype == torch.bool:
            select = select.flatten().nonzero()[:, 0]
        return self.lm_head(
            self.hidden(tokens, positions=positions, documents=documents, cache=cache, select=select)
        )


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x * scale


@frozen_heap()
def load_model(
    checkpoint: Checkpoint | str | Path, *, dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu", progress: Progress = no_progress,
    placed: Callable[[nn.Module], None] | None = None,
) -> Transformer:
    """The model of a checkpoint, frozen, read a block of one weight at a time into its place on `device`.

    placed: called with each block as soon as it has its weights, so that it can be sharded before the next is read.
    dtype None keeps the embedding's dtype on disk for all weights. Memory: the weights in `dtype`, and some tens of
    MB where they are converted. Everything the headers can tell is checked first. CheckpointError when a tensor is
    missing, left over, of another shape, or not finite; ConfigError when the architecture is not supported.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint)
    config = checkpoint.config
    weights = list(matched(checkpoint, config))
    with torch.device("meta"):
        model = Transformer(config)
    dtype = dtype or torch_dtype(weights[0][1].dtype)
    waiting = Counter(block_of(name) for name, _ in weights)
    normalised = {f"{config.family.name('lm_head')}.weight"} if config.family.normalised_head else set()
    read = read_weights(
        weights, dtype, torch.device(device), unit_rows=normalised, threads=min(torch.get_num_threads(), _READERS)
    )
    for name, weight in progress(read, total=len(weights), description="loading", unit="tensor"):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
        if placed is not None and (block := block_of(name)) is not None:
            waiting[block] -= 1
            if not waiting[block]:
                placed(model.model.layers[block])
    if config.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()
