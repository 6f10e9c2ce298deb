"""The transformer: one decoder-only model for every family in `config.FAMILIES`.

Module names are those of the checkpoint's tensors, so a tensor's name is its place. The linears are plain
`torch.nn.Linear`, frozen; `lora.attach` puts adapters on them.

Shapes: B rows, T positions, D hidden size, H heads, G key/value heads, E head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import packed
from .checkpoint import Checkpoint, expected_shapes
from .config import ModelConfig, Rope
from .errors import CheckpointError, NumLLMError
from .files import Progress, no_progress

PADDING = -1
"""Document number of padding positions."""


class RMSNorm(nn.Module):
    """y = weight · x / sqrt(mean(x²) + eps) over the last dimension, computed in fp32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) → (..., D) in x's dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rope_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Angle per position of each pair of features, (E / 2,) fp32.

    θ^(−2i/E), stretched as `rope.kind` says: linear divides by the factor; llama3 (Llama 3.1's released code)
    divides long wavelengths and blends the middle; yarn (arXiv 2309.00071, NTK-by-parts) ramps by dimension.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / plain
        low, high = rope.low_freq_factor, rope.high_freq_factor
        share = (rope.original_context / wavelength - low) / (high - low)
        blended = (1 - share) * plain / rope.factor + share * plain
        longest, shortest = rope.original_context / low, rope.original_context / high
        stretched = torch.where(wavelength > longest, plain / rope.factor, blended)
        return torch.where(wavelength < shortest, plain, stretched)
    if rope.kind == "yarn":

        def dimension(turns: float) -> float:
            return head_dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

        low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = (torch.arange(head_dim // 2).float() - low) / (high - low if high != low else 0.001)
        keep = 1 - ramp.clamp(0, 1)
        return plain / rope.factor * (1 - keep) + plain * keep
    return plain


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: pairs (xᵢ, xᵢ₊ᴇ⸝₂) turned by the position's angle. x (B, H, T, E), cos, sin (B, 1, T, E)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class Cache:
    """Keys and values of the positions seen so far, preallocated.

    keys, values (layers, B, G, length, E); documents (B, length) int32; `used` positions are filled.
    """

    def __init__(self, config: ModelConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device):
        shape = (config.layers, batch, config.kv_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.documents = torch.zeros((batch, length), dtype=torch.int32, device=device)
        self.padded = False
        self.used = 0

    @property
    def length(self) -> int:
        """Positions there is room for."""
        return self.keys.shape[3]


class Plan:
    """What every layer of one forward pass needs: rotations, and which keys each query sees."""

    def __init__(
        self, config: ModelConfig, frequencies: Tensor, tokens: Tensor, positions: Tensor | None,
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
        tree = None
        if branches is not None:
            if documents is None or cache is not None:
                raise ValueError("branches need documents, and no cache")
            tree = _tree(documents, branches)
            positions = tree.sum(-1) - 1
        elif positions is None:
            positions = _positions(documents, count, self.start, device).expand(batch, count)
        angles = positions[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        factor = config.rope.attention_factor
        self.cos, self.sin = (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)
        self.packed = None
        if documents is not None and tree is None and cache is None:
            self.packed = packed(documents, dtype, windowed=any(config.windows))
        self.masks = {} if self.packed is not None else {
            window: _mask(documents, count, self.start, self.stop, window, device)
            if tree is None else _narrow(tree, positions, window)
            for window in set(config.windows)
        }
        self.causal = self.start == 0 and count > 1


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


def _tree(documents: Tensor, branches: Tensor) -> Tensor:
    """(B, T, T) bool: earlier tokens of the same document, on the trunk (branch 0) or on the token's own branch."""
    count = documents.shape[1]
    seen = torch.ones(count, count, dtype=torch.bool, device=documents.device).tril()
    seen = seen & (documents[:, :, None] == documents[:, None, :])
    return seen & ((branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :]))


def _narrow(tree: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """(B, 1, T, T): what `_tree` shows, within the window."""
    if window is not None and window < tree.shape[-1]:
        tree = tree & (positions[:, :, None] - positions[:, None, :] < window)
    return tree[:, None]


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, optional biases, query/key norm and window."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q, config.hidden_size, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.layer, self.head_dim, self.window = layer, config.head_dim, config.windows[layer]
        self.grouped = config.heads != config.kv_heads

    def _heads(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        x = x.unflatten(-1, (-1, self.head_dim))
        return (norm(x) if norm is not None else x).transpose(1, 2)

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        """x (B, T, D) → (B, T, D)."""
        q = self._heads(self.q_proj(x), getattr(self, "q_norm", None))
        k = self._heads(self.k_proj(x), getattr(self, "k_norm", None))
        v = self._heads(self.v_proj(x), None)
        q, k = rotate(q, plan.cos, plan.sin), rotate(k, plan.cos, plan.sin)
        if plan.cache is not None:
            keys, values = plan.cache.keys[self.layer], plan.cache.values[self.layer]
            keys[:, :, plan.start : plan.stop] = k
            values[:, :, plan.start : plan.stop] = v
            k, v = keys[:, :, : plan.stop], values[:, :, : plan.stop]
        if plan.packed is not None:
            y = plan.packed.attend(q, k, v, self.window)
        else:
            mask = plan.masks[self.window]
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None and plan.causal, enable_gqa=self.grouped
            )
        return self.o_proj(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """silu(gate) ⊙ up (arXiv 2002.05202)."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate, up (..., I) → (..., I)."""
        return F.silu(gate) * up


class MLP(nn.Module):
    """down(SwiGLU(gate(x), up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, i, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(d, i, bias=bias)
        self.up_proj = nn.Linear(d, i, bias=bias)
        self.down_proj = nn.Linear(i, d, bias=bias)
        self.act = SwiGLU()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) → (B, T, D)."""
        return self.down_proj(self.act(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        """x (B, T, D) → (B, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), plan)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, blocks and the last norm: what the checkpoint calls `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class Transformer(nn.Module):
    """A decoder-only transformer; every weight frozen. Made by `load_model`, or empty from a ModelConfig."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
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

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of up to `length` positions."""
        return Cache(self.config, batch, length, self.dtype, self.device)

    def hidden(
        self, tokens: Tensor, *, positions: Tensor | None = None, documents: Tensor | None = None,
        branches: Tensor | None = None, cache: Cache | None = None,
    ) -> Tensor:
        """States after the last norm, (B, T, D).

        tokens (B, T) int64. positions (B, T): default, counted within each document. documents (B, T) ints:
        a token sees earlier tokens of the same number only; PADDING marks padding. branches (B, T) ints: a
        document may be a tree, its trunk numbered 0; a token sees the trunk and its own branch, and positions
        are counted along them. With a cache, tokens follow what is in it.
        """
        if self._frequencies is None or self._frequencies.device != tokens.device:
            self._frequencies = rope_frequencies(self.config.rope, self.config.head_dim).to(tokens.device)
        plan = Plan(self.config, self._frequencies, tokens, positions, documents, branches, cache, self.dtype)
        x = self.model.embed_tokens(tokens)
        for block in self.model.layers:
            x = block(x, plan)
        if cache is not None:
            cache.used = plan.stop
        return self.model.norm(x)

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, documents: Tensor | None = None,
        cache: Cache | None = None, select: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); or (S, V) of the positions picked by `select`, a mask (B, T) or flat indexes (S,).

        The other arguments are those of `hidden`.
        """
        x = self.hidden(tokens, positions=positions, documents=documents, cache=cache)
        if select is not None:
            x = x[select] if select.dtype == torch.bool else x.flatten(0, 1)[select]
        return self.lm_head(x)


def _leftover(name: str, config: ModelConfig) -> bool:
    """Tensors that some checkpoints hold and that carry nothing: old rotary buffers, the tied head."""
    return name.endswith(".rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")


def _check(checkpoint: Checkpoint, config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(name in the model, name in the file) of every weight, after checking that names and shapes agree."""
    expected = dict(expected_shapes(config))
    names = {name: name for name in expected}
    embedding = "model.embed_tokens.weight"
    if config.tied and embedding not in checkpoint.tensors and "lm_head.weight" in checkpoint.tensors:
        names[embedding] = "lm_head.weight"
    for name, stored in names.items():
        info = checkpoint.info(stored)
        if info.shape != expected[name]:
            raise CheckpointError(
                f"{info.file}: {stored} has the shape {list(info.shape)}, config.json wants {list(expected[name])}"
            )
        if info.dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(f"{info.file}: {stored} is {info.dtype}; supported: F32, F16, BF16")
        yield name, stored
    for name in checkpoint.tensors:
        if name not in names and not _leftover(name, config):
            raise CheckpointError(
                f"{checkpoint.tensors[name].file}: {config.architecture} has no tensor {name!r}; "
                "the checkpoint is of another model"
            )


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


def load_model(
    checkpoint: Checkpoint | str | Path, *, dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu", progress: Progress = no_progress,
) -> Transformer:
    """The model of a checkpoint, frozen, one tensor read at a time.

    dtype None keeps the embedding's dtype on disk for all weights. CheckpointError when a tensor is missing,
    left over, of another shape, or not finite; ConfigError when the architecture is not supported.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint)
    config = checkpoint.config
    pairs = list(_check(checkpoint, config))
    with torch.device("meta"):
        model = Transformer(config)
    if dtype is None:
        dtype = checkpoint.read(pairs[0][1]).dtype
    for name, stored in progress(pairs, total=len(pairs), description="loading", unit="tensor"):
        tensor = checkpoint.read(stored, dtype=dtype, device=device)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{checkpoint.info(stored).file}: {stored} holds NaN or infinity as {dtype}; "
                "the checkpoint is damaged or needs another --dtype"
            )
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    if config.tied:
        _check_tied(checkpoint)
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def _check_tied(checkpoint: Checkpoint) -> None:
    embedding, head = (checkpoint.tensors.get(n) for n in ("model.embed_tokens.weight", "lm_head.weight"))
    if embedding and head and not torch.equal(checkpoint.read(embedding.name), checkpoint.read(head.name)):
        raise CheckpointError(
            f"{checkpoint.folder}: config.json ties the head to the embedding, but lm_head.weight differs "
            "from model.embed_tokens.weight; set tie_word_embeddings to false or remove one"
        )
