"""Pieces of text packed into rows, and the order in which the rows come."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ..model import PADDING

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


def _order(count: int, epoch: int, seed: int, salt: str) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed} {salt} {epoch}").shuffle(order)
    return order


def take(step: int, size: int, count: int, seed: int, salt: str) -> list[tuple[int, int]]:
    """(epoch, index) of the items of one step, when every epoch is a fresh shuffle of `count` items."""
    first = step * size
    orders: dict[int, list[int]] = {}
    taken = []
    for place in range(first, first + size):
        epoch, offset = divmod(place, count)
        if epoch not in orders:
            orders[epoch] = _order(count, epoch, seed, salt)
        taken.append((epoch, orders[epoch][offset]))
    return taken
