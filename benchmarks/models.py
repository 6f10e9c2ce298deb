"""Random models for benchmarks: numllm's and transformers' over the same weights, drawn in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from numllm.checkpoint import expected_shapes
from numllm.config import ModelConfig
from numllm.model import Transformer

QWEN_7B = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
"""Qwen2.5-7B's."""
QWEN_HALF = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
"""Qwen2.5-0.5B's."""


def config_of(shape: dict[str, Any]) -> ModelConfig:
    """A Qwen2 of this shape."""
    return ModelConfig.from_hf({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **shape})


def weights(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Weights by their names: norms of 1, the others from N(0, 0.02²), drawn on the device."""
    generator = torch.Generator(device).manual_seed(0)
    found = {}
    for name, shape in expected_shapes(config):
        weight = torch.empty(shape, dtype=dtype, device=device)
        found[name] = weight.fill_(1) if name.endswith("norm.weight") else weight.normal_(0, 0.02, generator=generator)
    return found


def ours(config: ModelConfig, held: dict[str, Tensor]) -> Transformer:
    """The hand-written model over these weights."""
    with torch.device("meta"):
        model = Transformer(config)
    embedding = held["model.embed_tokens.weight"]
    model.load_state_dict({"lm_head.weight": embedding, **held}, assign=True)
    return model.eval()


def theirs(shape: dict[str, Any], held: dict[str, Tensor]) -> Any:
    """transformers' over the same weights, frozen."""
    import transformers

    embedding = held["model.embed_tokens.weight"]
    config = transformers.Qwen2Config(**shape, attn_implementation="sdpa")
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(config)
    model.load_state_dict({"lm_head.weight": embedding, **held}, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(embedding.device)  # its buffers are not weights
    return model.requires_grad_(False)
