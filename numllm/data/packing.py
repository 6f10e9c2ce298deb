"""Pieces of text packed into rows, and which of them each step takes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ..positions import PADDING

Piece = tuple[int, ...]
"""Token ids that see each other and nothing else."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of piece indexes, each row at most `capacity` tokens: best fit, longest first.

    The fullest row that still has room takes the piece, so rows are nearly full. Deterministic.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # by room left: row numbers
    rooms = 0  # bit r is set when some row has room for r more tokens
    rows: list[list[int]] = []
    for index in order:
        length = lengths[index]
        if not 0 < length <= capacity:
            raise ValueError(f"a piece must have 1..{capacity} tokens, got {length}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return rows


def lay_out(rows: Sequence[Sequence[Piece]], length: int) -> tuple[Tensor, Tensor, list[list[int]]]:
    """(tokens (B, T), documents (B, T), flat start of each piece in each row) of packed pieces."""
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    documents = torch.full((len(rows), length), PADDING, dtype=torch.int32)
    starts: list[list[int]] = []
    for r, row in enumerate(rows):
        at = 0
        starts.append([])
        for number, piece in enumerate(row):
            tokens[r, at : at + len(piece)] = torch.tensor(piece)
            documents[r, at : at + len(piece)] = number
            starts[-1].append(r * length + at)
            at += len(piece)
    return tokens, documents, starts


class Draw:
    """Which items each step takes from an endless row of epochs, each a fresh shuffle of all items.

    size: items a step; or tokens: as many as have that many tokens together, one at least, lengths being the items'.
    What a step takes depends on (lengths, size or tokens, seed, salt, step) only.
    """

    def __init__(
        self, lengths: Sequence[int], *, size: int, tokens: int | None = None, seed: int = 0, salt: str = ""
    ) -> None:
        self.size, self.tokens, self._lengths, self._key = size, tokens, lengths, f"{seed} {salt}"
        self._begins = [0]  # with tokens: where in the row of epochs each step begins, as far as known
        self._orders: dict[int, list[int]] = {}

    @property
    def epoch_steps(self) -> float:
        """Steps in which every item comes once."""
        return len(self._lengths) / self.size if self.tokens is None else sum(self._lengths) / self.tokens

    def _item(self, place: int) -> tuple[int, int]:
        epoch, offset = divmod(place, len(self._lengths))
        if epoch not in self._orders:
            order = list(range(len(self._lengths)))
            random.Random(f"{self._key} {epoch}").shuffle(order)
            self._orders = {known: o for known, o in self._orders.items() if known == epoch - 1} | {epoch: order}
        return epoch, self._orders[epoch][offset]

    def _begin(self, step: int) -> int:
        if self.tokens is None:
            return step * self.size
        while len(self._begins) <= step:
            place, held = self._begins[-1], 0
            while True:
                held += self._lengths[self._item(place)[1]]
                if held > self.tokens and place > self._begins[-1]:
                    break
                place += 1
            self._begins.append(place)
        return self._begins[step]

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """(epoch, index) of the items of a step."""
        return [self._item(place) for place in range(self._begin(step), self._begin(step + 1))]
