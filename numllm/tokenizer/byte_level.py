"""Byte-level BPE: Qwen2's vocab.json + merges.txt, and Qwen's qwen.tiktoken."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ..errors import TokenizerError, short
from ..files import read_text

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pre-tokenisation of all Qwen models: words, single digits, punctuation, line ends, spaces."""

QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
"""Control tokens of the first Qwen, whose ids follow those of qwen.tiktoken."""


def byte_level_bpe(
    vocabulary: dict[str, int] | None = None, merges: list[tuple[str, str]] | None = None, *,
    whole_words: bool = False,
) -> Backend:
    """A byte-level BPE tokenizer with Qwen's normaliser (NFC) and pre-tokenisation.

    whole_words: a word that is in the vocabulary is one token, whether merges lead there or not.
    """
    model = models.BPE(vocabulary, merges, ignore_merges=whole_words) if vocabulary else models.BPE()
    backend = Backend(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    backend.decoder = decoders.ByteLevel()
    return backend


def from_vocab_and_merges(vocabulary: dict[str, int], path: Path) -> Backend:
    """From the contents of vocab.json and the file merges.txt."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise TokenizerError(f"{path}, line {number}: wanted two pieces, got {short(line)}")
        merges.append((parts[0], parts[1]))
    return byte_level_bpe(vocabulary, merges)


def from_tiktoken(path: Path) -> Backend:
    """From a file of "base64 of a token's bytes, its rank" a line, as tiktoken reads it.

    tiktoken joins the neighbours whose union has the lowest rank, the first of equals; here every pair of tokens
    that makes a token is a merge of that rank. That is the same: while no merge crosses a token's borders, it is
    built inside any text by the steps that build it alone, so no two of its pairs ever compete.
    """
    ranks = _read_ranks(path)
    letters = _byte_letters()
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = [
        (name[:cut], name[cut:])
        for name in vocabulary for cut in range(1, len(name))
        if name[:cut] in vocabulary and name[cut:] in vocabulary
    ]
    backend = byte_level_bpe(vocabulary, merges, whole_words=True)
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in QWEN_SPECIALS])
    return backend


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Token → rank, in the order of the ranks, which are 0, 1, 2, …"""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            text, rank = line.split()
            token = base64.b64decode(text, validate=True)
            fits = int(rank) == len(ranks) and token not in ranks
        except (ValueError, binascii.Error):
            fits = False
        if not fits:
            raise TokenizerError(
                f"{path}, line {number}: wanted a new token in base64 and the rank {len(ranks)}, got {short(line)}"
            )
        ranks[token] = len(ranks)
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise TokenizerError(f"{path}: has no token for the byte {lacking[0]}; it is not whole, download it again")
    return ranks


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's): printable ones for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in plain)
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]
