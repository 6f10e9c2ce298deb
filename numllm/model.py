"""The transformer: one decoder-only model for every family in `families.FAMILIES`.

Module names are those of the checkpoint's tensors, so a tensor's name is its place, and adapters speak of the
checkpoint's own linears, those that compute q, k and v at once among them. The code speaks of all by Llama's names:
see `Part`. The linears are `torch.nn.Linear`, frozen; `lora.attach` puts adapters on them.

Shapes: B rows, T positions, D hidden size, H heads, G key/value heads, E head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import products
from .attention import attend, packed, trees
from .checkpoint import Checkpoint, torch_dtype
from .collector import frozen_heap
from .config import ModelConfig, Rope
from .errors import NumLLMError
from .files import Progress, no_progress
from .ops import Thin, elementwise, producers
from .rope import frequencies, rotations
from .weights import block_of, matched, read_weights

PADDING = -1
"""Document number of padding positions."""
_READERS = 4
"""Most threads that read weights: a few fill what memory takes."""


class Part(nn.Module):
    """A module whose parts have the family's names and answer to Llama's as well.

    names: Llama's name of a part → the family's, where they differ.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self.names = names

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(self.names.get(name, name) if isinstance(value, nn.Module) else name, value)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(self.__dict__.get("names", {}).get(name, name))


class Linear(nn.Linear):
    """A linear whose weights are read, so none are drawn: on the meta device that alone takes seconds of imports."""

    def reset_parameters(self) -> None:
        """Nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) → (..., N)."""
        return products.linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """An embedding whose weights are read, so none are drawn."""

    def reset_parameters(self) -> None:
        """Nothing."""


class RMSNorm(nn.Module):
    """y = weight · x / sqrt(mean(x²) + eps) over the last dimension, computed in fp32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) → (..., D) in x's dtype."""
        return elementwise.rms_norm(x, self.weight, self.eps)

    def thinned(self, x: Tensor, thin: Thin) -> tuple[Tensor, Thin]:
        """(this norm of x, `thin` of it): for linears whose adapters begin with that product."""
        return producers.norm_down(x, self.weight, self.eps, thin)

    def after(self, x: Tensor, added: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """(h, this norm of h) with h = x + scale · added: x, added (..., D)."""
        return elementwise.add_rms_norm(x, added, self.weight, self.eps, scale)

    def thinned_after(self, x: Tensor, added: Tensor, scale: float, thin: Thin) -> tuple[Tensor, Tensor, Thin]:
        """`after` and `thinned` in one: (h, this norm of h, `thin` of that)."""
        return producers.add_norm_down(x, added, self.weight, self.eps, scale, thin)


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


def each(x: Tensor, *linears: nn.Module, thin: Thin | None = None) -> tuple[Tensor, ...]:
    """What linears make of the same x, all at once where one knows how (`lora.LoRALinear.together`).

    thin: what came of `thin_of` them, when x was made.
    """
    together = next((linear.together for linear in linears if hasattr(linear, "together")), None)
    return tuple(linear(x) for linear in linears) if together is None else together(x, linears, thin)


def thin_of(maker: nn.Module, like: Tensor, *linears: nn.Module) -> Thin | None:
    """The thin product of what linears are to read that `maker` can take with it (`lora.LoRALinear.thin`), if any.

    like: of the shape of what it makes, but for the last dimension.
    """
    thin = next((linear.thin for linear in linears if hasattr(linear, "thin")), None)
    return thin(like, linears) if thin is not None and hasattr(maker, "thinned") else None


class Attention(Part):
    """Grouped-query attention with rotary positions, optional biases, query/key norm and window."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config.family.names)
        for name, (outputs, inputs, bias) in config.attention_linears().items():
            setattr(self, name, Linear(inputs, outputs, bias=bias))
        self.q_norm = self.k_norm = None
        if config.family.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.layer, self.head_dim, self.window = layer, config.head_dim, config.windows[layer]
        self.heads, self.kv_heads, self.family = config.heads, config.kv_heads, config.family

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        """The linears that read its input."""
        return (self.qkv_proj,) if self.family.fused_qkv else (self.q_proj, self.k_proj, self.v_proj)

    def _projections(self, x: Tensor, thin: Thin | None) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, H, E), k and v (B, T, G, E)."""
        first, *rest = (y.unflatten(-1, (-1, self.head_dim)) for y in each(x, *self.readers, thin=thin))
        if rest:
            return first, *rest
        qkv = first
        if not self.family.qkv_by_group:
            return qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=-2)
        groups = qkv.unflatten(-2, (self.kv_heads, -1))
        return groups[..., :-2, :].flatten(-3, -2), groups[..., -2, :], groups[..., -1, :]

    def forward(self, x: Tensor, plan: Plan, thin: Thin | None = None) -> Tensor:
        """x (B, T, D) → (B, T, D). thin: of `readers` and x, where it is there."""
        q, k, v = self._projections(x, thin)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        q, k = elementwise.rotate(q, k, plan.cos, plan.sin, neighbours=self.family.rotates_neighbours)
        if plan.query_scale is not None:
            q = q * plan.query_scale
        if plan.cache is not None:
            keys, values = plan.cache.keys[self.layer], plan.cache.values[self.layer]
            keys.narrow(2, plan.start, plan.stop - plan.start).copy_(k)
            values.narrow(2, plan.start, plan.stop - plan.start).copy_(v)
            k, v = keys.narrow(2, 0, plan.stop), values.narrow(2, 0, plan.stop)
        if plan.packed is not None:
            y = plan.packed.attend(q, k, v, self.window)
        else:
            mask = plan.masks[self.window]
            y = attend(q, k, v, mask, causal=mask is None and plan.causal)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """silu(gate) ⊙ up (arXiv 2002.05202)."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate, up (..., I) → (..., I)."""
        return elementwise.swiglu(gate, up)

    def thinned(self, gate: Tensor, up: Tensor, thin: Thin) -> tuple[Tensor, Thin]:
        """(silu(gate) ⊙ up, `thin` of it): as `RMSNorm.thinned`."""
        return producers.swiglu_down(gate, up, thin)


class MLP(Part):
    """down(SwiGLU(gate(x), up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.family.names)
        for name, (outputs, inputs, bias) in config.mlp_linears().items():
            setattr(self, name, Linear(inputs, outputs, bias=bias))
        self.fused = config.family.fused_gate_up
        self.act = SwiGLU()

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        """The linears that read its input."""
        return (self.gate_up_proj,) if self.fused else (self.gate_proj, self.up_proj)

    def forward(self, x: Tensor, thin: Thin | None = None) -> Tensor:
        """x (B, T, D) → (B, T, D). thin: of `readers` and x, where it is there."""
        both = each(x, *self.readers, thin=thin)
        gate, up = both[0].chunk(2, dim=-1) if self.fused else both
        thin = thin_of(self.act, gate, self.down_proj)
        if thin is None:
            return self.down_proj(self.act(gate, up))
        y, thin = self.act.thinned(gate, up, thin)
        return each(y, self.down_proj, thin=thin)[0]


def _normed(norm: nn.Module, x: Tensor, linears: Sequence[nn.Module]) -> tuple[Tensor, Thin | None]:
    """(norm(x), and the thin product of it that the linears take, where the norm is to take it)."""
    thin = thin_of(norm, x, *linears)
    return (norm(x), None) if thin is None else norm.thinned(x, thin)


def _sum_normed(
    norm: nn.Module, x: Tensor, added: Tensor, scale: float, linears: Sequence[nn.Module]
) -> tuple[Tensor, Tensor, Thin | None]:
    """(h, *`_normed`(h)) with h = x + scale · added."""
    thin = thin_of(norm, x, *linears)
    if thin is not None:
        return norm.thinned_after(x, added, scale, thin)
    if hasattr(norm, "after"):
        return *norm.after(x, added, scale), None
    h = torch.add(x, added, alpha=scale)  # a norm that an adapter trains whole
    return h, norm(h), None


class Block(Part):
    """x + attention(norm(x)), then x + mlp(norm(x)); what is added may itself be normalised, and scaled."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config.family.names)
        self.post_self_attn_layernorm = self.post_mlp_layernorm = None
        for name in config.block_norms():
            setattr(self, name, RMSNorm(config.hidden_size, config.norm_eps))
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.scale = config.residual_scale

    def forward(self, x: Tensor, plan: Plan, select: Tensor | None = None) -> Tensor:
        """x (B, T, D) → (B, T, D); or (S, D) of the positions picked by `select`, flat indexes (S,)."""
        y, thin = _normed(self.input_layernorm, x, self.self_attn.readers)
        y = self.self_attn(y, plan, thin)
        if self.post_self_attn_layernorm is not None:
            y = self.post_self_attn_layernorm(y)
        if select is None:
            x, y, thin = _sum_normed(self.post_attention_layernorm, x, y, self.scale, self.mlp.readers)
        else:
            x = torch.add(x, y, alpha=self.scale).flatten(0, 1)[select]
            y, thin = _normed(self.post_attention_layernorm, x, self.mlp.readers)
        y = self.mlp(y, thin)
        if self.post_mlp_layernorm is not None:
            y = self.post_mlp_layernorm(y)
        return torch.add(x, y, alpha=self.scale)


class Body(Part):
    """Embedding, blocks and the last norm: what Llama's checkpoints call `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.family.names)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class NormalisedHead(nn.Module):
    """A head whose rows have length 1, as `load_model` makes them. No linear, so no adapter is put on it: one would
    have to be added before the rows are divided.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) → (..., V)."""
        return products.linear(x, self.weight)


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
