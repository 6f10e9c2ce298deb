"""Fin-Textbooks: from a shelf of textbooks to a clean, de-duplicated, traceable corpus."""

from .build import build_corpus
from .readers import read_file
from .relevance import read_terms
from .rows import read_corpus

__all__ = ["build_corpus", "read_corpus", "read_file", "read_terms"]
