"""Next-token batches of a corpus."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import DataError
from ..tokenizer import Tokenizer
from .batch import Batch
from .packing import Draw, Piece, lay_out, pack
from .tokens import Tokens, in_memory


class TextBatches:
    """Next-token batches of a corpus: documents end with eos, long ones are cut, rows are packed.

    texts: the documents, or their tokens (`data.tokens`), whose bos and eos are in them. rows: rows a step; or
    tokens: as many rows as have that many tokens. length: tokens a row. Every token but the first of a piece is a
    label.
    """

    def __init__(
        self, texts: Sequence[str] | Tokens, tokenizer: Tokenizer, *, rows: int, length: int,
        tokens: int | None = None, seed: int = 0,
    ) -> None:
        self._tokens = texts if isinstance(texts, Tokens) else in_memory(texts, tokenizer)
        # Neighbouring cuts share a token, so that every token but the first is predicted once.
        self._pieces = [
            (first, min(first + length, end))
            for begin, end in self._tokens.spans()
            for first in range(begin, max(end - 1, begin), length - 1)
        ]
        if not self._pieces:
            raise DataError("the corpus has no text to train on: none of its documents is of the split train")
        sizes = [end - begin for begin, end in self._pieces]
        self._rows = pack(sizes, length)
        self.rows, self.length, self.tokens = rows, length, sum(sizes)
        self._draw = Draw(
            [sum(sizes[piece] for piece in row) for row in self._rows], size=rows, tokens=tokens, seed=seed, salt="text"
        )

    @property
    def epoch_steps(self) -> float:
        """Steps in one pass over the text."""
        return self._draw.epoch_steps

    @property
    def fill(self) -> float:
        """Share of the rows' positions that hold a token."""
        return self.tokens / (len(self._rows) * self.length)

    def _piece(self, index: int) -> Piece:
        begin, end = self._pieces[index]
        return tuple(self._tokens.ids[begin:end].tolist())

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        rows = [[self._piece(piece) for piece in self._rows[index]] for _, index in self._draw(step)]
        tokens, documents, starts = lay_out(rows, self.length)
        positions = torch.tensor([
            at + offset
            for row, begins in zip(rows, starts, strict=True)
            for piece, at in zip(row, begins, strict=True)
            for offset in range(len(piece) - 1)
        ])
        labels = tokens.flatten()[positions + 1]
        return Batch(tokens, documents, positions, labels, count=len(labels))
