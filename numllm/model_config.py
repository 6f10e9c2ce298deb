"""What a model is, as its config.json says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from .errors import ConfigError, short
from .families import EVERY, FAMILIES, UPPER, Family, find_family, in_llamas_keys

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The seven linear maps of a block, by Llama's names, in the order they are used."""
LARGEST = 1e30
"""What a number of config.json stays below: no model's are near it, and nothing made of it overflows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: frequencies and how they are stretched for long contexts."""

    kind: str = "default"
    """"default", "linear", "dynamic", "llama3", "yarn" or "qwen"."""
    theta: float = 10000.0
    factor: float = 1.0
    original_context: int = 0
    """Positions the model was pre-trained on, before stretching (dynamic, llama3, yarn, qwen)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Multiplier of cos and sin (yarn)."""
    truncate: bool = True
    """yarn: round the corrected dimensions outwards to whole numbers."""
    share: float = 1.0
    """Share of each head that is rotated: its first features."""

    @property
    def by_length(self) -> bool:
        """Whether the frequencies depend on how long the sequence is."""
        return self.kind in ("dynamic", "qwen")

    def stretched(self, context: int) -> int:
        """Positions a model can use that claims `context` of them."""
        if self.kind in ("linear", "dynamic"):
            return int(context * self.factor)
        return max(context, int(self.original_context * self.factor)) if self.kind == "yarn" else context

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Rope:
        """From `rope_theta` + `rope_scaling`, or `rope_parameters`. ConfigError for what is not honoured."""
        if config.get("rope_parameters") and config.get("rope_scaling"):
            raise ConfigError("config.json has both rope_parameters and rope_scaling; keep one")
        given = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"config.json: the rope scaling must be an object, got {short(given)}")
        given = dict(given)
        theta = given.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
        kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
        given.pop("type", None)

        def number(key: str, value: Any, above: float = -math.inf) -> float:
            good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
            if not good or value <= above:
                more = "" if above == -math.inf else f" above {above:g}"
                raise ConfigError(f"rope scaling: {key} must be a number{more}, got {short(value)}")
            return value

        def take(key: str, default: float | None = None) -> float:
            value = given.pop(key, None)
            if value is None and default is None:
                raise ConfigError(f"rope scaling {kind!r} needs the key {key!r}")
            return number(key, default if value is None else value, above=0)

        fields: dict[str, Any] = {"kind": kind, "theta": float(number("rope_theta", theta, above=0))}
        if "partial_rotary_factor" in config:
            fields["share"] = take("partial_rotary_factor", config["partial_rotary_factor"])
        context = config.get("max_position_embeddings") or 2048
        if kind == "linear":
            fields["factor"] = take("factor")
        elif kind == "dynamic":
            fields["factor"], fields["original_context"] = take("factor"), context
        elif kind == "qwen":
            fields["original_context"] = int(take("original_max_position_embeddings"))
        elif kind == "llama3":
            for key in ("factor", "low_freq_factor", "high_freq_factor"):
                fields[key] = take(key)
            fields["original_context"] = int(take("original_max_position_embeddings"))
        elif kind == "yarn":
            fields["factor"] = take("factor")
            fields["original_context"] = int(take("original_max_position_embeddings", context))
            fields["beta_fast"] = take("beta_fast", 32.0)
            fields["beta_slow"] = take("beta_slow", 1.0)
            plain = 0.1 * math.log(fields["factor"]) + 1.0 if fields["factor"] > 1 else 1.0
            fields["attention_factor"] = take("attention_factor", plain)
            fields["truncate"] = bool(given.pop("truncate", True))
        elif kind != "default":
            raise ConfigError(
                f"rope scaling {short(kind)} is not supported; supported: default, linear, dynamic, llama3, yarn"
            )
        left = sorted(key for key, value in given.items() if value is not None)
        if kind == "default":
            left = [key for key in left if key not in ("factor", "original_max_position_embeddings")]
        if left:
            raise ConfigError(f"rope scaling {kind!r} has a key numllm does not honour: {', '.join(left)}")
        return cls(**fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer of the Llama kind, as read from a Hugging Face config.json."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    """Positions the model can use: max_position_embeddings, stretched as its rope scaling says."""
    norm_eps: float
    rope: Rope
    tied: bool
    """The head is the embedding, transposed."""
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    windows: tuple[int | None, ...]
    """For each layer, how many positions back (itself included) a token sees; None: all."""
    logn_context: int | None = None
    """The n-th query beyond this many is multiplied by log n / log logn_context (Qwen-7B)."""
    embedding_scale: float = 1.0
    """The embedding is multiplied by this,"""
    residual_scale: float = 1.0
    """what attention and MLP add by this,"""
    head_scale: float = 1.0
    """and what the head reads by this (MiniCPM)."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim",
            "context",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
                raise ConfigError(f"config.json: {name} must be a positive whole number, got {short(value)}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"config.json: {self.heads} heads cannot share {self.kv_heads} key/value heads")
        least = 4 if self.rope.by_length else 2
        if self.head_dim % 2 or self.rotary_dim % 2 or not least <= self.rotary_dim <= self.head_dim:
            raise ConfigError(
                f"config.json: rotary positions need an even head_dim of at least {least}, got {self.head_dim} and "
                f"{self.rotary_dim} of it rotated"
            )
        if self.rope.kind == "qwen" and self.architecture != "QWenLMHeadModel":
            raise ConfigError(f"rope scaling 'qwen' is not supported in {self.architecture}")

    @property
    def family(self) -> Family:
        """What its architecture calls things and does otherwise than Llama."""
        return FAMILIES[self.architecture]

    @property
    def rotary_dim(self) -> int:
        """Features of a head that are rotated, its first ones."""
        return int(self.head_dim * self.rope.share)

    def attention_linears(self) -> dict[str, tuple[int, int, bool]]:
        """Part → (outputs, inputs, bias) of the attention's linears, in the order they are used."""
        d, q, kv = self.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim
        output = {"o_proj": (d, q, self.o_bias)}
        if self.family.fused_qkv:
            return {"qkv_proj": (q + 2 * kv, d, self.qkv_bias)} | output
        return {name: (n, d, self.qkv_bias) for name, n in (("q_proj", q), ("k_proj", kv), ("v_proj", kv))} | output

    def mlp_linears(self) -> dict[str, tuple[int, int, bool]]:
        """Part → (outputs, inputs, bias) of the MLP's linears, in the order they are used."""
        d, i, bias = self.hidden_size, self.intermediate_size, self.mlp_bias
        inputs = {"gate_up_proj": 2 * i} if self.family.fused_gate_up else {"gate_proj": i, "up_proj": i}
        return {name: (n, d, bias) for name, n in inputs.items()} | {"down_proj": (d, i, bias)}

    def block_norms(self) -> tuple[str, ...]:
        """The parts of a block that are norms over the hidden size."""
        added = ("post_self_attn_layernorm", "post_mlp_layernorm") if self.family.added_norms else ()
        return ("input_layernorm", "post_attention_layernorm", *added)

    def linear_names(self) -> dict[str, str]:
        """Llama's name of each of a block's seven linears → the end of the checkpoint's own that tells it apart.

        Those that the checkpoint holds as one have one name: of Baichuan, q_proj, k_proj and v_proj are W_pack.
        """
        found = {}
        for linear in LINEARS:
            owner, part = linear.split(".")
            if self.family.fused_qkv and part in ("q_proj", "k_proj", "v_proj"):
                stored = "qkv_proj"
            elif self.family.fused_gate_up and part in ("gate_proj", "up_proj"):
                stored = "gate_up_proj"
            else:
                stored = part
            found[part] = f"{self.family.name(owner)}.{self.family.name(stored)}"
        leaves = [name.split(".")[1] for name in set(found.values())]
        return {
            part: name if leaves.count(name.split(".")[1]) > 1 else name.split(".")[1] for part, name in found.items()
        }

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """From the contents of config.json.

        ConfigError names the architecture that is not supported, the key that is not honoured, or the value
        that is out of range; nothing that could change a logit is ignored.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(f"config.json must hold an object, got {type(config).__name__}")
        architecture, family = find_family(config)
        if config.get("quantization_config"):
            raise ConfigError(
                "config.json has quantization_config: quantised checkpoints are not supported; "
                "use the unquantised one"
            )
        config = in_llamas_keys(config, family)

        def need(key: str) -> Any:
            if config.get(key) is None:
                raise ConfigError(f"config.json lacks {key}")
            return config[key]

        def number(key: str, default: float) -> float:
            value = default if config.get(key) is None else config[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
                raise ConfigError(f"config.json: {key} must be a positive number, got {short(value)}")
            return float(value)

        hidden, heads, layers = need("hidden_size"), need("num_attention_heads"), need("num_hidden_layers")
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
            if isinstance(config[key], bool) or not isinstance(config[key], int) or not 1 <= config[key] < 1 << 20:
                raise ConfigError(f"config.json: {key} must be a positive whole number, got {short(config[key])}")
        head_dim = config.get("head_dim")
        if head_dim is None:
            if hidden % heads:
                raise ConfigError(f"config.json: hidden_size {hidden} is not a multiple of {heads} heads")
            head_dim = hidden // heads
        context = config.get("max_position_embeddings") or 2048
        if isinstance(context, bool) or not isinstance(context, int) or abs(context) >= LARGEST:
            raise ConfigError(f"config.json: max_position_embeddings must be a whole number, got {short(context)}")
        rope = Rope.from_hf(config)
        bias = bool(config.get("attention_bias", False))
        return cls(
            architecture=architecture,
            vocab_size=need("vocab_size"),
            hidden_size=hidden,
            intermediate_size=need("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            context=rope.stretched(context),
            norm_eps=number("rms_norm_eps", 1e-6),
            rope=rope,
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
            o_bias=bias if family.o_bias is None else family.o_bias,
            mlp_bias=bool(config.get("mlp_bias", False)) if family.model_type == "llama" else False,
            windows=_windows(config, family, layers),
            logn_context=config.get("logn_context"),
            embedding_scale=number("scale_emb", 1.0),
            residual_scale=number("scale_depth", math.sqrt(layers)) / math.sqrt(layers),
            head_scale=number("dim_model_base", hidden) / hidden,
        )


def _windows(config: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ConfigError(f"config.json: sliding_window must be a positive whole number, got {short(window)}")
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
            raise ConfigError(
                f"config.json: layer_types must name {layers} layers as full_attention or sliding_attention"
            )
        if "sliding_attention" in kinds and window is None:
            raise ConfigError("config.json: layer_types has sliding_attention but there is no sliding_window")
        if "sliding_attention" in kinds and family.window is None:
            raise ConfigError(f"config.json: {family.models} have no sliding_attention, which layer_types names")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if family.window == EVERY:
        return (window,) * layers
    if family.window == UPPER and config.get("use_sliding_window"):
        first = config.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int):
            raise ConfigError(f"config.json: max_window_layers must be a whole number, got {short(first)}")
        return tuple(window if layer >= first else None for layer in range(layers))
    if family.window is None and window:
        raise ConfigError(f"config.json: sliding_window is not a key of {family.models}")
    return (None,) * layers
