"""Real config.json files: each is read or refused by name, and a model of each that is read equals transformers'."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from numllm.config import ModelConfig
from numllm.errors import ConfigError
from numllm.model import load_model

CONFIGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "configs"
REFUSED = {
    "MixtralForCausalLM": "a mixture of experts", "Qwen3MoeForCausalLM": "a mixture of experts",
    "DeepseekV2ForCausalLM": "a mixture of experts", "DeepseekV3ForCausalLM": "a mixture of experts",
    "GlmMoeDsaForCausalLM": "a mixture of experts", "Glm4MoeForCausalLM": "a mixture of experts",
    "GptOssForCausalLM": "a mixture of experts", "BaichuanForCausalLM": "of 13B",
    "BloomForCausalLM": "", "ChatGLMModel": "", "GPTNeoXForCausalLM": "", "GPTJForCausalLM": "", "Phi3ForCausalLM": "",
    "StableLmForCausalLM": "", "MiMoForCausalLM": "",
}  # fmt: skip


def test_every_real_config_is_read_or_refused_by_name(shared_data):
    read, refused = set(), set()
    for path in sorted((shared_data / "configs").rglob("*.json")):
        config = json.loads(path.read_text())
        if "generation" in path.name:
            continue
        (name,) = config["architectures"]
        if name in REFUSED:
            with pytest.raises(ConfigError) as error:
                ModelConfig.from_hf(config)
            message = str(error.value)
            assert name in message and REFUSED[name] in message and "supported: LlamaForCausalLM" in message
            assert "\n" not in message
            refused.add(name)
        else:
            model = ModelConfig.from_hf(config)
            read.add((name, model.layers, model.hidden_size, model.rope.kind))
    assert refused == set(REFUSED) and len(read) >= 18


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """The same model with few and narrow layers, short windows, and contexts that a test can pass.

    What stays: ratio of heads to key/value heads, biases, norms, ties, θ, the kind and factors of the scaling.
    """
    small = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype", "pad_token_id")}
    groups = 2 if config.get("num_key_value_heads") not in (None, config["num_attention_heads"]) else 4
    ratio = config["num_attention_heads"] // config.get("num_key_value_heads", config["num_attention_heads"])
    small |= {
        "num_attention_heads": groups * ratio, "num_key_value_heads": groups, "num_hidden_layers": 2,
        "hidden_size": groups * ratio * 8, "intermediate_size": 96, "vocab_size": 160, "bos_token_id": 1,
        "eos_token_id": 2, "max_position_embeddings": 256, "_attn_implementation_autoset": True,
    }
    if "head_dim" in config:
        small["head_dim"] = 8 * config["head_dim"] * config["num_attention_heads"] // config["hidden_size"] // 2 * 2
    if config.get("sliding_window"):
        small["sliding_window"], small["max_window_layers"] = 12, 1
    if scaling := config.get("rope_scaling"):
        original = scaling.get("original_max_position_embeddings")
        small["rope_scaling"] = {**scaling, **({"original_max_position_embeddings": 32} if original else {})}
    return small


def real() -> dict[str, Path]:
    """A config file of each model that is read, by name."""
    found = {}
    for path in sorted(CONFIGS.rglob("*.json")):
        config = json.loads(path.read_text())
        name = (config.get("architectures") or [""])[0]
        if name.removesuffix("ForCausalLM") in ("Llama", "Mistral", "Qwen2", "Qwen3"):
            stem = path.stem if path.stem != "config" else path.parent.name
            found[stem.split("--")[-1].replace("_config", "").replace(".config", "")] = path
    return found


@pytest.mark.parametrize("name", real())
def test_a_shrunk_model_of_the_config_equals_transformers(name, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    config = shrunk(json.loads(real()[name].read_text()))
    kinds = {kind.model_type: kind for kind in (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)}
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(
        kinds[config["model_type"]].from_dict(config), attn_implementation="sdpa", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.randn_like(weight) * 0.2 + (weight.dim() == 1))
    theirs.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))  # the real one's keys, not those saved now
    ours = load_model(tmp_path / "m")
    tokens = torch.randint(0, 160, (2, 80), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = theirs(tokens).logits, ours(tokens)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        prompt = tokens[:1, :16]
        generated = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        )[0, 16:]
        cache, step, greedy = ours.new_cache(1, 48), prompt, []
        for _ in range(32):
            step = ours(step, cache=cache)[:, -1:].argmax(-1)
            greedy.append(int(step))
    assert greedy == generated.tolist()
    assert ours.config.context >= 256 and math.isfinite(float(expected.sum()))
