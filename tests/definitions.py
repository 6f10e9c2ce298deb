"""Families that live outside transformers, each written out plainly from its released definition, in fp64.

One row at a time, a loop over heads, no cache: what the transformer of numllm is compared with. Nothing of numllm is
used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """x (T, E), angles (T, E/2): the pair (xᵢ, xᵢ₊ᴇ⸝₂) read as a complex number and turned."""
    half = x.shape[1] // 2
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), 1)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(1, keepdim=True) + eps).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def attend(q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> Tensor:
    """Causal attention of each head's q (T, E); heads share k and v in groups."""
    share = len(q) // len(k)
    out = []
    for head, queries in enumerate(q):
        scores = queries @ k[head // share].T / math.sqrt(queries.shape[1])
        future = torch.ones_like(scores).triu(1).bool()
        out.append(scores.masked_fill(future, -math.inf).softmax(1) @ v[head // share])
    return torch.cat(out, 1)


def angles_of(theta: Callable[[int], float], lengths: list[int], size: int) -> Tensor:
    """(T, size / 2): position times frequency, each token by the θ of the length at its time."""
    rows = [
        [place / theta(length) ** (2 * pair / size) for pair in range(size // 2)]
        for place, length in enumerate(lengths)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def qwen1(config: dict[str, Any], w: Weights, ids: Tensor, prompt: int) -> Tensor:
    d, heads, size, trained = (config[key] for key in (
        "hidden_size", "num_attention_heads", "kv_channels", "seq_length"
    ))

    def theta(length: int) -> float:
        alpha = 1.0
        if config["use_dynamic_ntk"]:
            alpha = max(2 ** math.ceil(math.log(length / trained, 2) + 1) - 1, 1)
        return config["rotary_emb_base"] * alpha ** (size / (size - 2))

    angles = angles_of(theta, [prompt] * len(ids), size)
    x = w["transformer.wte.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"transformer.h.{layer}."
        y = norm(x, w[at + "ln_1.weight"], config["layer_norm_epsilon"])
        q, k, v = (y @ w[at + "attn.c_attn.weight"].T + w[at + "attn.c_attn.bias"]).split(heads * size, 1)
        q, k = ([turn(part, angles) for part in whole.split(size, 1)] for whole in (q, k))
        if config["use_logn_attn"]:
            scale = torch.tensor([[math.log(n, trained) if n > trained else 1.0] for n in range(1, len(ids) + 1)])
            q = [part * scale.double() for part in q]
        x = x + attend(q, k, list(v.split(size, 1))) @ w[at + "attn.c_proj.weight"].T
        y = norm(x, w[at + "ln_2.weight"], config["layer_norm_epsilon"])
        y = (y @ w[at + "mlp.w1.weight"].T) * silu(y @ w[at + "mlp.w2.weight"].T)
        x = x + y @ w[at + "mlp.c_proj.weight"].T
    assert d == x.shape[1]
    return norm(x, w["transformer.ln_f.weight"], config["layer_norm_epsilon"]) @ w["lm_head.weight"].T


def dynamic_theta(config: dict[str, Any], size: int) -> Callable[[int], float]:
    scaling, context = config.get("rope_scaling"), config["max_position_embeddings"]

    def theta(length: int) -> float:
        base = config.get("rope_theta", 10000.0)
        if scaling and length > context:
            assert scaling["type"] == "dynamic"
            grown = scaling["factor"] * length / context - (scaling["factor"] - 1)
            return base * grown ** (size / (size - 2))
        return base

    return theta


def internlm2(config: dict[str, Any], w: Weights, ids: Tensor, prompt: int) -> Tensor:
    heads, groups, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    size = config["hidden_size"] // heads
    lengths = [max(prompt, place + 1) for place in range(len(ids))]
    angles = angles_of(dynamic_theta(config, size), lengths, size)

    def linear(y: Tensor, name: str) -> Tensor:
        return y @ w[name + ".weight"].T + (w[name + ".bias"] if config["bias"] else 0)

    x = w["model.tok_embeddings.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        y = linear(norm(x, w[at + "attention_norm.weight"], eps), at + "attention.wqkv")
        q, k, v = [], [], []
        for group in y.split((heads // groups + 2) * size, 1):
            *queries, key, value = group.split(size, 1)
            q += [turn(part, angles) for part in queries]
            k.append(turn(key, angles))
            v.append(value)
        x = x + linear(attend(q, k, v), at + "attention.wo")
        y = norm(x, w[at + "ffn_norm.weight"], eps)
        gate, up = (y @ w[f"{at}feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (silu(gate) * up) @ w[at + "feed_forward.w2.weight"].T
    return norm(x, w["model.norm.weight"], eps) @ w["output.weight"].T


def baichuan(config: dict[str, Any], w: Weights, ids: Tensor, prompt: int) -> Tensor:
    heads, eps = config["num_attention_heads"], config["rms_norm_eps"]
    size = config["hidden_size"] // heads
    angles = angles_of(lambda _: 10000.0, [1] * len(ids), size)
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        packed = norm(x, w[at + "input_layernorm.weight"], eps) @ w[at + "self_attn.W_pack.weight"].T
        q, k, v = (list(part.split(size, 1)) for part in packed.split(config["hidden_size"], 1))
        q, k = ([turn(part, angles) for part in whole] for whole in (q, k))
        x = x + attend(q, k, v) @ w[at + "self_attn.o_proj.weight"].T
        y = norm(x, w[at + "post_attention_layernorm.weight"], eps)
        gate, up = (y @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (silu(gate) * up) @ w[at + "mlp.down_proj.weight"].T
    head = w["lm_head.weight"]
    if config["architectures"] == ["BaichuanForCausalLM"]:
        head = head / head.pow(2).sum(1, keepdim=True).sqrt()
    return norm(x, w["model.norm.weight"], eps) @ head.T


def minicpm(config: dict[str, Any], w: Weights, ids: Tensor, prompt: int) -> Tensor:
    heads, groups, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    size = config["hidden_size"] // heads
    lengths = [max(prompt, place + 1) for place in range(len(ids))]
    angles = angles_of(dynamic_theta(config, size), lengths, size)
    added = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    x = w["model.embed_tokens.weight"][ids] * config["scale_emb"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        y = norm(x, w[at + "input_layernorm.weight"], eps)
        q, k, v = (list((y @ w[f"{at}self_attn.{name}_proj.weight"].T).split(size, 1)) for name in "qkv")
        q, k = ([turn(part, angles) for part in whole] for whole in (q, k))
        assert len(k) == groups
        x = x + attend(q, k, v) @ w[at + "self_attn.o_proj.weight"].T * added
        y = norm(x, w[at + "post_attention_layernorm.weight"], eps)
        gate, up = (y @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (silu(gate) * up) @ w[at + "mlp.down_proj.weight"].T * added
    x = norm(x, w["model.norm.weight"], eps) / (config["hidden_size"] / config["dim_model_base"])
    return x @ w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T


_SHAPE = {
    "vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "silu",
    "tie_word_embeddings": False, "use_cache": True, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
    "auto_map": {"AutoModelForCausalLM": "modeling_of_their_own.Model"},
}
_LLAMA = {"intermediate_size": 96, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
_BLOCK = {"input_layernorm": (64,), "post_attention_layernorm": (64,)}
_MLP = {"mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}

Definition = Callable[[dict[str, Any], Weights, Tensor, int], Tensor]
FAMILIES: dict[str, tuple[Definition, dict[str, Any]]] = {
    "qwen1": (qwen1, {
        **_SHAPE, "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "attn_dropout_prob": 0.0, "bf16": True,
        "emb_dropout_prob": 0.0, "fp16": False, "fp32": False, "intermediate_size": 192, "kv_channels": 16,
        "layer_norm_epsilon": 1e-6, "max_position_embeddings": 256, "no_bias": True, "onnx_safe": None,
        "rotary_emb_base": 10000, "rotary_pct": 1.0, "scale_attn_weights": True, "seq_length": 20,
        "use_dynamic_ntk": True, "use_flash_attn": "auto", "use_logn_attn": True,
    }),
    "internlm2": (internlm2, {
        **_SHAPE, **_LLAMA, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False,
        "num_key_value_heads": 2, "rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 24, "attn_implementation": "eager",
    }),
    "internlm2-bias": (internlm2, {
        **_SHAPE, **_LLAMA, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": True,
        "num_key_value_heads": 1, "rope_theta": 1000000, "rope_scaling": None,
    }),
    "baichuan": (baichuan, {**_SHAPE, **_LLAMA, "architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan"}),
    "baichuan2": (baichuan, {
        **_SHAPE, **_LLAMA, "architectures": ["BaichuanForCausalLM"], "model_type": "baichuan",
        "model_max_length": 64, "z_loss_weight": 0, "_from_model_config": True, "gradient_checkpointing": False,
    }),
    "minicpm": (minicpm, {
        **_SHAPE, **_LLAMA, "architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "num_key_value_heads": 4,
        "scale_emb": 2, "dim_model_base": 16, "scale_depth": 1.4, "tie_word_embeddings": True, "rope_scaling": None,
    }),
    "minicpm-dynamic": (minicpm, {
        **_SHAPE, **_LLAMA, "architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "num_key_value_heads": 2,
        "scale_emb": 2, "dim_model_base": 16, "scale_depth": 1.4, "max_position_embeddings": 24,
        "rope_scaling": {"type": "dynamic", "factor": 3.0},
    }),
}
"""Name → (definition, config.json, small but with every key of the released ones that matters)."""


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape, as the family's released checkpoints have them."""
    kind, d, v = config["model_type"], config["hidden_size"], config["vocab_size"]
    kv = config.get("num_key_value_heads", 4) * 16
    if kind == "qwen":
        block = {
            "ln_1": (d,), "attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "ln_2": (d,), "mlp.w1": (96, d),
            "mlp.w2": (96, d), "mlp.c_proj": (d, 96),
        }
        ends, layers = {"transformer.wte": (v, d), "transformer.ln_f": (d,), "lm_head": (v, d)}, "transformer.h"
    elif kind == "internlm2":
        block = {
            "attention_norm": (d,), "attention.wqkv": (d + 2 * kv, d), "attention.wo": (d, d), "ffn_norm": (d,),
            "feed_forward.w1": (96, d), "feed_forward.w3": (96, d), "feed_forward.w2": (d, 96),
        }
        ends = {"model.tok_embeddings": (v, d), "model.norm": (d,), "output": (v, d)}
        layers = "model.layers"
    else:
        packed = {"self_attn.W_pack": (3 * d, d)}
        apart = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d)}
        block = {**_BLOCK, **(packed if kind == "baichuan" else apart), "self_attn.o_proj": (d, d), **_MLP}
        ends = {"model.embed_tokens": (v, d), "model.norm": (d,)}
        ends |= {} if config["tie_word_embeddings"] else {"lm_head": (v, d)}
        layers = "model.layers"
    found = {f"{name}.weight": shape for name, shape in ends.items()}
    biased = {"qwen": ("attn.c_attn",), "internlm2": ("attention.wqkv", "attention.wo") * config.get("bias", 0)}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in block.items():
            found[f"{layers}.{layer}.{name}.weight"] = shape
            if name in biased.get(kind, ()):
                found[f"{layers}.{layer}.{name}.bias"] = shape[:1]
    return found


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """fp32 weights of visible size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 0.3)
        + (1.0 if "norm" in name or "ln_" in name else 0.0)
        for name, shape in shapes(config).items()
    }


class Layout(nn.Module):
    """Bare linears under a checkpoint's own names: what PEFT needs to put an adapter on and merge it."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.config = {"model_type": "custom"}
        for key, weight in weights.items():
            owner: nn.Module = self
            *path, leaf = key.removesuffix(".weight").split(".")
            if not key.endswith(".weight") or weight.dim() != 2 or "emb" in leaf or leaf == "wte":
                continue
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            linear = nn.Linear(*weight.shape[::-1], bias=False)
            linear.weight = nn.Parameter(weight.clone())
            owner.add_module(leaf, linear)

    def forward(self) -> None:
        """PEFT wants this and the next."""

    def prepare_inputs_for_generation(self) -> None:
        """Never called."""


def with_peft(folder: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with an adapter merged by PEFT, over the checkpoint's own names."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(Layout(weights), str(folder)).merge_and_unload().state_dict()
    assert set(merged) <= set(weights) and any(not torch.equal(merged[key], weights[key]) for key in merged)
    return {**weights, **merged}
