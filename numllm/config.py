"""What a model and an adapter are: frozen dataclasses, checked when made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from .errors import ConfigError

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The seven linear maps of a block, in the order they are used."""

TARGETS = tuple(name.split(".")[1] for name in LINEARS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What distinguishes one architecture from another; everything else is in its config.json."""

    model_type: str
    qkv_bias: bool | None = None
    """None: the config's attention_bias says, for q, k, v and o alike."""
    qk_norm: bool = False
    default_window: int | None = None
    """sliding_window where config.json has none."""
    default_kv_heads: int | None = None
    """num_key_value_heads where config.json has none; None: as many as heads."""
    default_head_dim: int | None = None
    """head_dim where config.json has none; None: hidden_size / heads."""


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(model_type="llama"),
    "MistralForCausalLM": Family(
        model_type="mistral", qkv_bias=False, default_window=4096, default_kv_heads=8
    ),
    "Qwen2ForCausalLM": Family(model_type="qwen2", qkv_bias=True, default_kv_heads=32),
    "Qwen3ForCausalLM": Family(
        model_type="qwen3", qk_norm=True, default_kv_heads=32, default_head_dim=128
    ),
}

# Keys of config.json that cannot change a logit: names, token ids, initialisation, and what generation or
# other heads use.
_WITHOUT_EFFECT = frozenset(
    """
    _name_or_path architectures bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label
    initializer_range label2id length_penalty max_length max_sequence_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
    use_cache
    """.split()
)

# Keys that are honoured only at the value that means "off".
_ONLY_AT: Mapping[str, Any] = {
    "add_cross_attention": False,
    "attention_dropout": 0,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "hidden_act": "silu",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "use_mrope": False,
}

_HONOURED = frozenset(
    """
    attention_bias head_dim hidden_size intermediate_size layer_types max_position_embeddings
    max_window_layers mlp_bias num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps
    rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings use_sliding_window
    vocab_size
    """.split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: frequencies and how they are stretched for long contexts."""

    kind: str = "default"
    """"default", "linear", "llama3" or "yarn"."""
    theta: float = 10000.0
    factor: float = 1.0
    original_context: int = 0
    """Positions the model was pre-trained on, before stretching (llama3, yarn)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Multiplier of cos and sin (yarn)."""
    truncate: bool = True
    """yarn: round the corrected dimensions outwards to whole numbers."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Rope:
        """From `rope_theta` + `rope_scaling`, or `rope_parameters`. ConfigError for what is not honoured."""
        if config.get("rope_parameters") and config.get("rope_scaling"):
            raise ConfigError("config.json has both rope_parameters and rope_scaling; keep one")
        given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        theta = float(given.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
        kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
        given.pop("type", None)
        fields: dict[str, Any] = {"kind": kind, "theta": theta}

        def take(key: str, default: float | None = None) -> float:
            value = given.pop(key, default)
            if value is None:
                raise ConfigError(f"rope scaling {kind!r} needs the key {key!r}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"rope scaling: {key} must be a number, got {value!r}")
            return value

        context = config.get("max_position_embeddings", 0)
        if kind == "linear":
            fields["factor"] = take("factor")
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
            raise ConfigError(f"rope scaling {kind!r} is not supported; supported: default, linear, llama3, yarn")
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
    """Positions the model claims (max_position_embeddings)."""
    norm_eps: float
    rope: Rope
    tied: bool
    """The head is the embedding, transposed."""
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """RMSNorm over each head of q and of k, before the rotation."""
    windows: tuple[int | None, ...]
    """For each layer, how many positions back (itself included) a token sees; None: all."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim",
            "context",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"config.json: {name} must be a positive whole number, got {value!r}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"config.json: {self.heads} heads cannot share {self.kv_heads} key/value heads")
        if self.head_dim % 2:
            raise ConfigError(f"config.json: head_dim must be even for rotary positions, got {self.head_dim}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """From the contents of config.json.

        ConfigError names the architecture that is not supported, the key that is not honoured, or the value
        that is out of range; nothing that could change a logit is ignored.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(f"config.json must hold an object, got {type(config).__name__}")
        names = config.get("architectures")
        architecture = names[0] if isinstance(names, list) and len(names) == 1 else None
        family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
        if family is None:
            raise ConfigError(
                f"architecture {names!r} is not supported; supported: {', '.join(FAMILIES)}"
            )
        if config.get("quantization_config"):
            raise ConfigError(
                "config.json has quantization_config: quantised checkpoints are not supported; "
                "use the unquantised one"
            )
        for key, off in _ONLY_AT.items():
            if key in config and config[key] not in (off, None):
                raise ConfigError(f"config.json: {key} = {config[key]!r} is not supported, only {off!r}")
        unknown = sorted(
            key for key, value in config.items()
            if key not in _WITHOUT_EFFECT and key not in _HONOURED and key not in _ONLY_AT
            and value is not None
        )
        if unknown:
            raise ConfigError(f"config.json has a key numllm does not honour: {', '.join(unknown)}")

        def need(key: str) -> Any:
            if config.get(key) is None:
                raise ConfigError(f"config.json lacks {key}")
            return config[key]

        hidden, heads, layers = need("hidden_size"), need("num_attention_heads"), need("num_hidden_layers")
        if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
            raise ConfigError("config.json: hidden_size and num_attention_heads must be whole numbers")
        head_dim = config.get("head_dim") or family.default_head_dim
        if head_dim is None:
            if hidden % heads:
                raise ConfigError(f"config.json: hidden_size {hidden} is not a multiple of {heads} heads")
            head_dim = hidden // heads
        if "num_key_value_heads" in config:
            kv_heads = config["num_key_value_heads"] or heads
        else:
            kv_heads = family.default_kv_heads or heads
        bias = bool(config.get("attention_bias", False))
        return cls(
            architecture=architecture,
            vocab_size=need("vocab_size"),
            hidden_size=hidden,
            intermediate_size=need("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            context=config.get("max_position_embeddings") or 2048,
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=Rope.from_hf(config),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
            o_bias=bias if family.qkv_bias is None else False,
            mlp_bias=bool(config.get("mlp_bias", False)) if family.model_type == "llama" else False,
            qk_norm=family.qk_norm,
            windows=_windows(config, family, layers),
        )


def _windows(config: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
        raise ConfigError(f"config.json: num_hidden_layers must be a positive whole number, got {layers!r}")
    window = config["sliding_window"] if "sliding_window" in config else family.default_window
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ConfigError(f"config.json: sliding_window must be a positive whole number, got {window!r}")
    kinds = config.get("layer_types")
    if kinds is not None:
        wrong = set(kinds) - {"full_attention", "sliding_attention"}
        if wrong or len(kinds) != layers:
            raise ConfigError(
                f"config.json: layer_types must name {layers} layers as full_attention or sliding_attention"
            )
        if "sliding_attention" in kinds and window is None:
            raise ConfigError("config.json: layer_types has sliding_attention but there is no sliding_window")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if family.model_type == "mistral":
        return (window,) * layers
    if family.model_type in ("qwen2", "qwen3") and config.get("use_sliding_window"):
        first = config.get("max_window_layers", 28)
        return tuple(window if layer >= first else None for layer in range(layers))
    if family.model_type == "llama" and config.get("sliding_window"):
        raise ConfigError("config.json: sliding_window is not a key of LlamaForCausalLM")
    return (None,) * layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """One low-rank adapter: W + scale · B A on every linear it targets (LoRA, arXiv 2106.09685)."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS
    """Last part of the names of the linears it sits on."""

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"rank must be a positive whole number, got {self.rank!r}")
        if not math.isfinite(self.alpha) or self.alpha == 0:
            raise ConfigError(f"alpha must be a finite number other than 0, got {self.alpha!r}")
        if not self.targets:
            raise ConfigError("targets must name at least one linear, got none")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank
