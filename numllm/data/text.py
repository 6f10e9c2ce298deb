"""Next-token batches of a corpus."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import DataError
from ..tokenizer import Tokenizer
from .batch import Batch
from .packing import Piece, lay_out, pack, take


class TextBatches:
    """Next-token batches of a corpus: documents end with eos, long ones are cut, rows are packed.

    rows: rows a step. length: tokens a row. Every token but the first of a piece is a label.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: Tokenizer, *, rows: int, length: int, seed: int = 0
    ) -> None:
        end = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
        prefix = tokenizer.prefix()
        pieces: list[Piece] = []
        for ids in tokenizer.encode_batch(list(texts)):
            whole = prefix + ids + end
            # Neighbouring cuts share a token, so that every token but the first is predicted once.
            for first in range(0, max(len(whole) - 1, 0), length - 1):
                pieces.append(tuple(whole[first : first + length]))
        if not pieces:
            raise DataError("the corpus has no text to train on")
        self._pieces = pieces
        self._rows = pack([len(piece) for piece in pieces], length)
        self.rows, self.length, self.seed = rows, length, seed
        self.tokens = sum(map(len, pieces))

    @property
    def epoch_steps(self) -> float:
        """Steps in one pass over the text."""
        return len(self._rows) / self.rows

    @property
    def fill(self) -> float:
        """Share of the rows' positions that hold a token."""
        return self.tokens / (len(self._rows) * self.length)

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        chosen = take(step, self.rows, len(self._rows), self.seed, "text")
        rows = [[self._pieces[piece] for piece in self._rows[index]] for _, index in chosen]
        tokens, documents, starts = lay_out(rows, self.length)
        positions = torch.tensor([
            at + offset
            for row, begins in zip(rows, starts, strict=True)
            for piece, at in zip(row, begins, strict=True)
            for offset in range(len(piece) - 1)
        ])
        labels = tokens.flatten()[positions + 1]
        return Batch(tokens, documents, positions, labels, count=len(labels))
