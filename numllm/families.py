"""The families of models that are read: what each calls its parts and how its blocks differ from Llama's.

A family is a row of `FAMILIES`. Everything else a model is stands in its config.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ConfigError, short

EVERY, UPPER = "every", "upper"
"""Which layers a sliding window is on: all of them, or those from max_window_layers on."""


def _keep(config: dict[str, Any]) -> dict[str, Any]:
    return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture, told by how it differs from Llama."""

    models: str
    """The models it covers, for people."""
    model_type: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Llama's name of a part of the model → the family's, where they differ. A family that computes q, k and v by
    one linear names qkv_proj, one that computes gate and up by one names gate_up_proj."""
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Llama's key of config.json → the family's, where they differ."""
    own: frozenset[str] = frozenset()
    """Keys that mean something in this family only."""
    needed: tuple[str, ...] = ()
    """Keys that config.json must have beyond those every model needs."""
    inert: frozenset[str] = frozenset()
    """Keys of this family that cannot change a logit."""
    only_at: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of this family that are honoured at one value only."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values of keys that config.json may leave out, where they are not Llama's."""
    adjust: Callable[[dict[str, Any]], dict[str, Any]] = _keep
    """Says in Llama's keys what the family says in its own way."""
    qkv_bias: bool | None = None
    """None: the config's attention_bias says."""
    o_bias: bool | None = None
    """None: the config's attention_bias says."""
    qkv_by_group: bool = False
    """qkv_proj holds, for each key/value head, the queries that share it, then its key, then its value."""
    qk_norm: bool = False
    """RMSNorm over each head of q and of k, before the rotation."""
    added_norms: bool = False
    """What attention and MLP add to the stream is normalised as well."""
    rotates_neighbours: bool = False
    """Rotary pairs are (x₀, x₁), (x₂, x₃), … instead of the two halves' elements."""
    normalised_head: bool = False
    """Each row of the head is divided by its length."""
    window: str | None = None
    """EVERY, UPPER, or None: a sliding window is refused."""

    def name(self, part: str) -> str:
        """The family's name of a part that Llama calls `part`."""
        return self.names.get(part, part)

    @property
    def fused_qkv(self) -> bool:
        """Whether one linear computes q, k and v."""
        return "qkv_proj" in self.names

    @property
    def fused_gate_up(self) -> bool:
        """Whether one linear computes gate and up."""
        return "gate_up_proj" in self.names


def _qwen1(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen's first release: the MLP's size is that of gate and up together; two switches for long texts."""
    size, trained = config.get("intermediate_size"), config["seq_length"]
    if not isinstance(size, int) or size % 2:
        raise ConfigError(f"config.json: intermediate_size must be an even number in this family, got {short(size)}")
    config["intermediate_size"] = size // 2
    if config.pop("use_dynamic_ntk", True):
        config["rope_scaling"] = {"type": "qwen", "original_max_position_embeddings": trained}
    else:
        config["max_position_embeddings"] = trained
    if config.pop("use_logn_attn", True):
        config["logn_context"] = trained
    return config


_BAICHUAN: Mapping[str, Any] = {
    "model_type": "baichuan", "names": {"qkv_proj": "W_pack"}, "qkv_bias": False, "o_bias": False,
    "needed": ("max_position_embeddings",), "inert": frozenset({"model_max_length", "z_loss_weight"}),
}

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(models="Llama 1 to 3.3, Yi", model_type="llama"),
    "MistralForCausalLM": Family(
        models="Mistral", model_type="mistral", qkv_bias=False, o_bias=False, window=EVERY,
        defaults={"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    ),
    "QWenLMHeadModel": Family(
        models="Qwen-1.8B, -7B, -14B, -72B", model_type="qwen", qkv_bias=True, o_bias=False,
        names={
            "model": "transformer", "embed_tokens": "wte", "layers": "h", "norm": "ln_f", "input_layernorm": "ln_1",
            "self_attn": "attn", "qkv_proj": "c_attn", "o_proj": "c_proj", "post_attention_layernorm": "ln_2",
            "gate_proj": "w2", "up_proj": "w1", "down_proj": "c_proj",
        },
        keys={"rms_norm_eps": "layer_norm_epsilon", "head_dim": "kv_channels", "rope_theta": "rotary_emb_base"},
        own=frozenset({"seq_length", "use_dynamic_ntk", "use_logn_attn"}), needed=("seq_length",), adjust=_qwen1,
        inert=frozenset({"bf16", "fp16", "fp32", "onnx_safe", "use_flash_attn", "use_cache_quantization",
                         "use_cache_kernel", "softmax_in_fp32"}),
        only_at={"attn_dropout_prob": 0, "emb_dropout_prob": 0, "no_bias": True, "rotary_pct": 1.0,
                 "scale_attn_weights": True},
    ),
    "Qwen2ForCausalLM": Family(
        models="Qwen1.5, Qwen2, Qwen2.5", model_type="qwen2", qkv_bias=True, o_bias=False, window=UPPER,
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
    ),
    "Qwen3ForCausalLM": Family(
        models="Qwen3 (dense)", model_type="qwen3", qk_norm=True, window=UPPER,
        defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
    ),
    "InternLM2ForCausalLM": Family(
        models="InternLM2, InternLM2.5", model_type="internlm2", keys={"attention_bias": "bias"}, qkv_by_group=True,
        names={
            "embed_tokens": "tok_embeddings", "input_layernorm": "attention_norm", "self_attn": "attention",
            "qkv_proj": "wqkv", "o_proj": "wo", "post_attention_layernorm": "ffn_norm", "mlp": "feed_forward",
            "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2", "lm_head": "output",
        },
    ),
    "BaiChuanForCausalLM": Family(models="Baichuan-7B", **_BAICHUAN),
    "BaichuanForCausalLM": Family(models="Baichuan2-7B", normalised_head=True, **_BAICHUAN),
    "MiniCPMForCausalLM": Family(
        models="MiniCPM-1B, -2B", model_type="minicpm", own=frozenset({"scale_emb", "scale_depth", "dim_model_base"}),
        needed=("scale_emb", "scale_depth", "dim_model_base"), defaults={"tie_word_embeddings": True},
    ),
    "Glm4ForCausalLM": Family(
        models="GLM-4-0414 (dense)", model_type="glm4", o_bias=False, added_norms=True, rotates_neighbours=True,
        names={"gate_up_proj": "gate_up_proj"}, own=frozenset({"partial_rotary_factor"}),
        defaults={
            "attention_bias": True, "partial_rotary_factor": 0.5, "num_key_value_heads": 2, "head_dim": 128,
            "rms_norm_eps": 1.5625e-07, "max_position_embeddings": 131072,
        },
    ),
}
"""Architecture (config.json's `architectures`) → its family."""

# Keys of config.json that cannot change a logit: names, token ids, initialisation, and what generation or
# other heads use. auto_map names code beside the weights, which is never run.
INERT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _from_model_config _name_or_path architectures
    attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label
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
ONLY_AT: Mapping[str, Any] = {
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

HONOURED = frozenset(
    """
    attention_bias head_dim hidden_size intermediate_size layer_types max_position_embeddings
    max_window_layers mlp_bias num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps
    rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings use_sliding_window
    vocab_size
    """.split()
)

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
_OTHER_INPUTS = ("vision_config", "visual", "audio_config")


def find_family(config: Mapping[str, Any]) -> tuple[str, Family]:
    """(architecture, family) of a config.json. ConfigError names what is not supported, and what is."""
    named = config.get("architectures")
    if named is None:
        named = [name for name, family in FAMILIES.items() if family.model_type == config.get("model_type")]
    architecture = named[0] if isinstance(named, list) and len(named) == 1 else None
    why = ""
    if any(config.get(key) for key in _EXPERTS):
        why = " (a mixture of experts)"
    elif any(config.get(key) for key in _OTHER_INPUTS):
        why = " (it reads more than text)"
    elif architecture == "BaichuanForCausalLM" and "max_position_embeddings" not in config:
        why = " of 13B (its positions are ALiBi)"
    if why or not isinstance(architecture, str) or architecture not in FAMILIES:
        shown = named or [config.get("model_type")]
        supported = ", ".join(f"{name} ({family.models})" for name, family in FAMILIES.items())
        raise ConfigError(f"architecture {short(shown)}{why} is not supported; supported: {supported}")
    return architecture, FAMILIES[architecture]


def in_llamas_keys(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """config.json with every key as Llama has it and the family's defaults filled in.

    ConfigError names the key that is missing, that is not honoured, or that is not at the one value that is.
    """
    for key, off in {**ONLY_AT, **family.only_at}.items():
        if key in config and config[key] not in (off, None):
            raise ConfigError(f"config.json: {key} = {short(config[key])} is not supported, only {off!r}")
    known = {*ONLY_AT, *family.only_at, *INERT, *family.inert, *HONOURED, *family.own, *family.keys.values()}
    known -= set(family.keys)
    unknown = sorted(key for key, value in config.items() if key not in known and value is not None)
    if unknown:
        raise ConfigError(f"config.json has a key numllm does not honour: {', '.join(unknown)}")
    for key in family.needed:
        if config.get(key) is None:
            raise ConfigError(f"config.json lacks {key}")
    llamas = {own: key for key, own in family.keys.items()}
    return family.adjust({**family.defaults, **{llamas.get(key, key): value for key, value in config.items()}})
