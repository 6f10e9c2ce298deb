"""tokenizer.model of sentencepiece as BPE merges."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from ..errors import TokenizerError, short
from .protobuf import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece, SentencePiece

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What sentencepiece writes for a space."""
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What it writes for a byte that is part of no character."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_ALL = 2**31
"""As many spaces as there are, for the decoder that strips them."""


def from_sentencepiece(model: SentencePiece, names: dict[int, str], where: Path) -> Backend:
    """The tokenizer of a sentencepiece BPE model; what stands before a text is left to `Spaces`.

    names: id → text of tokens that take the place of a piece (InternLM2's chat tokens). TokenizerError for
    what would not give sentencepiece's own ids.
    """
    _check(model, where)
    pieces = [
        Piece(names[id_], piece.score, CONTROL) if names.get(id_, piece.text) != piece.text else piece
        for id_, piece in enumerate(model.pieces)
    ]
    vocabulary = {piece.text: id_ for id_, piece in enumerate(pieces)}
    if len(vocabulary) < len(pieces):
        raise TokenizerError(f"{where}: two pieces have the same text; the model is damaged")
    unknown = next(piece.text for piece in pieces if piece.kind == UNKNOWN)
    backend = Backend(models.BPE(
        vocabulary, _merges(pieces, where), unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback,
    ))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
        *([decoders.Strip(" ", _ALL if model.squeeze else 1, 0)] if model.space_before or model.squeeze else []),
    ])
    backend.add_tokens([  # one with a space in it is never found: by then spaces are written otherwise
        AddedToken(piece.text, normalized=True, special=False)
        for piece in pieces if piece.kind == USER_DEFINED and " " not in piece.text
    ])
    backend.add_special_tokens([
        AddedToken(piece.text, normalized=False, special=True)
        for piece in pieces if piece.kind in (CONTROL, UNKNOWN)
    ])
    _check_spaces(backend, pieces, where)
    return backend


def _check(model: SentencePiece, where: Path) -> None:
    unsupported = {
        "another algorithm than BPE": model.algorithm != BPE,
        "a normaliser": bool(model.charsmap),
        "spaces behind words": model.space_behind,
        "unescaped spaces": not model.escape,
        "scores that are no numbers": not all(math.isfinite(piece.score) for piece in model.pieces),
        "no piece for the unknown": not any(piece.kind == UNKNOWN for piece in model.pieces),
        "unused pieces": any(piece.kind == UNUSED for piece in model.pieces),
    }
    found = [name for name, present in unsupported.items() if present]
    if found:
        raise TokenizerError(
            f"{where}: a sentencepiece model with {found[0]} is not supported; convert it to tokenizer.json"
        )
    count = sum(piece.kind == BYTE for piece in model.pieces)
    if model.byte_fallback and count != 256:
        raise TokenizerError(f"{where}: falls back to bytes, but has {count} byte pieces instead of 256")


def _merges(pieces: list[Piece], where: Path) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the best piece first.

    sentencepiece joins the neighbours whose union has the highest score, the leftmost of equals. That is the
    same where no two pieces share a score (see `byte_level.from_tiktoken`); runs of spaces may (`_check_spaces`).
    """
    normal = [piece for piece in pieces if piece.kind == NORMAL]
    known = {piece.text for piece in normal}
    letters = set("".join(known)) - known - {piece.text for piece in pieces if piece.kind == USER_DEFINED}
    if letters:
        raise TokenizerError(f"{where}: the letter {short(min(letters))} stands in pieces but is none itself")
    longer = sorted((piece for piece in normal if len(piece.text) > 1), key=lambda piece: -piece.score)
    for one, other in zip(longer, longer[1:], strict=False):
        if one.score == other.score and (one.text + other.text).strip(SPACE):
            raise TokenizerError(
                f"{where}: the pieces {short(one.text)} and {short(other.text)} share a score, which merges "
                "cannot say; convert it to tokenizer.json"
            )
    return [
        (piece.text[:cut], piece.text[cut:])
        for piece in longer for cut in range(1, len(piece.text))
        if piece.text[:cut] in known and piece.text[cut:] in known
    ]


def _check_spaces(backend: Backend, pieces: list[Piece], where: Path) -> None:
    """TokenizerError unless runs of spaces are cut as sentencepiece cuts them, though their pieces share a score."""
    scores = {len(piece.text): piece.score for piece in pieces
              if piece.kind == NORMAL and len(piece.text) > 1 and not piece.text.strip(SPACE)}
    if len(set(scores.values())) == len(scores):
        return
    for length in range(2, 4 * max(scores)):
        run = [1] * length
        while joins := [
            (-scores[a + b], at) for at, (a, b) in enumerate(zip(run, run[1:], strict=False)) if a + b in scores
        ]:
            _, at = min(joins)
            run[at : at + 2] = [run[at] + run[at + 1]]
        if [len(token) for token in backend.encode(" " * length, add_special_tokens=False).tokens] != run:
            raise TokenizerError(f"{where}: pieces of spaces share a score; convert it to tokenizer.json")


def whole_characters(pieces: Sequence[str]) -> list[str]:
    """The pieces, those of bytes that are part of no character replaced by BROKEN, as sentencepiece writes them."""
    found: list[str] = []
    for is_byte, run in itertools.groupby(pieces, lambda piece: _BYTE.fullmatch(piece) is not None):
        if not is_byte:
            found += run
            continue
        text = bytes(int(piece[3:5], 16) for piece in run).decode("utf-8", "surrogateescape")
        for letter in text:
            broken = "\udc80" <= letter <= "\udcff"
            found += [BROKEN] if broken else (f"<0x{byte:02X}>" for byte in letter.encode())
    return found


class Spaces:
    """What is done to the spaces of a text before sentencepiece's pieces are looked for.

    sentencepiece itself knows no control tokens inside a text, so what stands behind one goes by transformers' rule:
    behind_control (its "legacy") puts a space there as at a text's beginning, where none is; else it stays as it is.
    `controls`, where given, finds the control tokens to cut a text at, in a group.
    """

    def __init__(self, model: SentencePiece | None, *, behind_control: bool = False) -> None:
        self.before = model is not None and model.space_before
        self.squeeze = model is not None and model.squeeze
        self.behind_control = self.before and behind_control

    def prepare(self, text: str, controls: re.Pattern[str] | None = None) -> str:
        """The text with runs of spaces made one and those at its ends dropped (squeeze), a space before it."""
        text, *rest = controls.split(text) if controls else [text]
        if self.squeeze:
            text = re.sub(" {2,}", " ", text).lstrip(" ").rstrip(" " + SPACE)
        text = f" {text}" if self.before and text else text
        return text + "".join(" " * self._gap(place, part) + part for place, part in enumerate(rest))

    def _gap(self, place: int, part: str) -> bool:
        """Whether a space is put before a part: control tokens stand at even places, texts behind them at odd ones."""
        return self.behind_control and place % 2 == 1 and part[:1] not in ("", " ", SPACE)

    def offsets(
        self, text: str, prepared: list[tuple[int, int]], controls: re.Pattern[str] | None = None
    ) -> list[tuple[int, int]]:
        """Spans of the prepared text as spans of the text."""
        if not (self.before or self.squeeze):
            return prepared
        first, *rest = controls.split(text) if controls else [text]
        kept = list(range(len(first)))
        if self.squeeze:
            start, stop = len(first) - len(first.lstrip(" ")), len(first.rstrip(" " + SPACE))
            kept = [i for i in range(start, stop) if i == start or first[i - 1 : i + 1] != "  "]
        kept = [*kept[: self.before], *kept]
        at = len(first)
        for place, part in enumerate(rest):
            kept += [*[at] * self._gap(place, part), *range(at, at + len(part))]
            at += len(part)
        kept += [kept[-1] + 1] if kept else []
        return [(kept[start], kept[end]) for start, end in prepared]
