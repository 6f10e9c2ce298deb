"""Small random checkpoints of every family, made with transformers, for tests to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama3.1": ("Llama", {
        "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    }),
    "llama-linear": ("Llama", {
        "max_position_embeddings": 16,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0},
    }),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 8}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen2-tied": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {
        "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
    }),
    "qwen2-yarn": ("Qwen2", {
        "num_key_value_heads": 2, "max_position_embeddings": 128,
        "rope_parameters": {
            "rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
        },
    }),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
    "glm4": ("Glm4", {"num_key_value_heads": 2, "head_dim": 16, "attention_bias": True}),
    "glm4-yarn": ("Glm4", {
        "num_key_value_heads": 1, "head_dim": 16, "attention_bias": False, "max_position_embeddings": 32,
        "rope_parameters": {
            "rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
            "partial_rotary_factor": 0.5,
        },
    }),
}

BY_LENGTH: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-dynamic": ("Llama", {
        "max_position_embeddings": 24, "num_key_value_heads": 1,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0},
    }),
}
"""Families whose rotations depend on the length of the text: in transformers, of the longest of a batch."""


def transformers_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random transformers model of the family, 2 layers wide 64, with every weight of visible size."""
    import transformers

    kind, settings = {**FAMILIES, **BY_LENGTH}[family]
    config = getattr(transformers, f"{kind}Config")(**{
        "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": None,
        "pad_token_id": None, "attn_implementation": "sdpa", **settings, **changes,
    })
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.1 if weight.dim() > 1 else 0.3))
            if "norm" in name:
                weight.add_(1.0)
    return model.to(dtype)


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Saves a transformers model; the folder."""
    model.save_pretrained(folder, **options)
    return folder
