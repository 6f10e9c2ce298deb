"""Text to ids and back, from the files checkpoints come with: one Tokenizer whatever the files are."""

from .byte_level import byte_level_bpe
from .tokenizer import Tokenizer, read_settings

__all__ = ["Tokenizer", "byte_level_bpe", "read_settings"]
