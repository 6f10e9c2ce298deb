"""The layers of every family's blocks: linears, RMSNorm, attention, SwiGLU.

Shapes: B rows, T positions, D hidden size, G key/value heads, H heads, E head size, I inner size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import products
from .attention import attend
from .config import ModelConfig
from .ops import Thin, elementwise, producers
from .positions import Plan


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
