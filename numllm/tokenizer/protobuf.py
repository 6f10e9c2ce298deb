"""The parts of a sentencepiece model file that tokenising depends on, read from its protobuf.

Field numbers are those of sentencepiece_model.proto (https://github.com/google/sentencepiece).
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

from ..errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2


@dataclasses.dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePiece:
    """A sentencepiece model."""

    pieces: tuple[Piece, ...]
    algorithm: int = UNIGRAM
    byte_fallback: bool = False
    space_behind: bool = False
    """treat_whitespace_as_suffix"""
    charsmap: bytes = b""
    """precompiled_charsmap: how characters are normalised; empty: not at all."""
    space_before: bool = True
    """add_dummy_prefix"""
    squeeze: bool = True
    """remove_extra_whitespaces"""
    escape: bool = True
    """escape_whitespaces"""


def read_sentencepiece(path: Path) -> SentencePiece:
    """The model in a file. TokenizerError when it is not one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return _model(data)
    except (ValueError, TypeError, struct.error) as error:
        raise TokenizerError(
            f"{path}: is no sentencepiece model ({error}); if it is tiktoken's, convert it to tokenizer.json"
        ) from error


def _model(data: bytes) -> SentencePiece:
    pieces, found = [], {}
    for field, value in _fields(data):
        if field == 1:
            pieces.append(_piece(dict(_fields(_bytes(value)))))
        elif field == 2:  # TrainerSpec
            spec = dict(_fields(_bytes(value)))
            found |= {
                "algorithm": spec.get(3, UNIGRAM), "byte_fallback": bool(spec.get(35, 0)),
                "space_behind": bool(spec.get(24, 0)),
            }
        elif field == 3:  # NormalizerSpec
            spec = dict(_fields(_bytes(value)))
            found |= {
                "charsmap": _bytes(spec.get(2, b"")), "space_before": bool(spec.get(3, 1)),
                "squeeze": bool(spec.get(4, 1)), "escape": bool(spec.get(5, 1)),
            }
    if not pieces:
        raise ValueError("it has no pieces")
    return SentencePiece(pieces=tuple(pieces), **found)


def _piece(fields: dict[int, int | bytes]) -> Piece:
    (score,) = struct.unpack("<f", _bytes(fields.get(2, bytes(4))))
    return Piece(_bytes(fields[1]).decode("utf-8") if 1 in fields else "", score, int(fields.get(3, NORMAL)))


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field has the wrong type")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message: whole numbers as int, everything else as its bytes."""
    at = 0
    while at < len(data):
        key, at = _whole(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _whole(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _whole(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown wire type {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"it ends inside the field at byte {at}")
        yield key >> 3, data[at : at + size]
        at += size


def _whole(data: bytes, at: int) -> tuple[int, int]:
    """(a variable-length whole number, the place after it)."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"it ends inside a number at byte {at}")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
