"""numllm: numeric-sensitive language models for Chinese finance, from textbooks to merged weights.

Public names are resolved when first used, so `import numllm` costs nothing and loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Checkpoint": "checkpoint",
    "LoRAConfig": "config",
    "ModelConfig": "config",
    "NumLLMError": "errors",
    "Tokenizer": "tokenizer",
    "TrainConfig": "train_config",
    "attach": "lora",
    "build_corpus": "corpus",
    "find_numbers": "numbers",
    "load_adapters": "lora",
    "load_model": "model",
    "lora_linear": "ops",
}

__all__ = ["__version__", *_WHERE]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'numllm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
