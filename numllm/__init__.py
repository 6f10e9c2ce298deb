"""numllm: numeric-sensitive language models for Chinese finance, from textbooks to merged weights.

Public names are resolved when first used, so `import numllm` costs nothing and loads nothing heavy.
"""

from __future__ import annotations

from .lazy import resolver

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
    "train": "train",
}
"""Public name → the module it is in, or (train) is."""

__all__ = ["__version__", *_WHERE]  # noqa: PLE0604

__getattr__ = resolver(__name__, _WHERE)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
