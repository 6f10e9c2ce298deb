"""Errors a user can act on. Each carries one line: what was wanted, what was got, the way out."""

from __future__ import annotations

from typing import Any


def short(value: Any) -> str:
    """repr of what a file says, for a message: at most 80 characters, though the file may be anyone's."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class NumLLMError(Exception):
    """Base of every error that is the user's to mend; the command line prints it as `Error: …`, exit code 1."""


class ConfigError(NumLLMError):
    """A model, adapter or training configuration that numllm does not honour."""


class CheckpointError(NumLLMError):
    """A checkpoint folder or a safetensors file that is missing, damaged or unsafe."""


class TokenizerError(NumLLMError):
    """Tokenizer files that are missing, damaged or do not fit the model."""


class AdapterError(NumLLMError):
    """An adapter that is damaged, unsupported or made for another model."""


class DataError(NumLLMError):
    """A text, JSON or JSON-lines file that cannot be read as what it should be."""


class MergeError(NumLLMError):
    """A merge that cannot be done right."""


class TrainError(NumLLMError):
    """A training run that cannot start or cannot go on."""


class EvaluationError(NumLLMError):
    """Questions or a model that cannot be scored."""
