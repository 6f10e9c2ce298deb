"""The k-th largest |entry| of a product b a, to the bit, in little memory and as a rule one pass over its entries.

Some entries, spread evenly over rows and columns, tell between which two numbers it lies, all but surely. One pass
counts the entries from either number on and keeps those between, among which it is found. Where it lies elsewhere, or
so many entries are equal that those between are too many, the counts have narrowed the range and another pass
follows. What is sampled decides how long it takes and never what is found.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

TILE = 1 << 15
"""Entries made at a time: a few such matrices in fp64 fit a core's own cache."""

ROOM = 1 << 16
"""Entries that are kept in any case, so that small matrices are not sampled."""


def tile_rows(columns: int) -> int:
    """Rows of a tile; a product of fewer than 8 is slow."""
    return max(8, TILE // columns)


def smallest_kept(b: Tensor, a: Tensor, count: int) -> float:
    """The size from which on the `count` largest entries of b a are: the count-th largest |entry|; ∞ for none.

    b (N, R), a (R, K), fp64, on the CPU.
    """
    if count < 1:
        return math.inf
    total = len(b) * a.shape[1]
    guesses, room = _guesses(b, a, count / total) if total > ROOM else ([(0.0, math.inf)], ROOM)
    low, high = 0.0, math.inf  # it is in [low, high)
    while True:
        assert low < high, "b a holds NaN or infinity"
        lower, upper = low, high
        while guesses:
            guess = guesses.pop(0)
            if max(guess[0], low) < min(guess[1], high):
                lower, upper = max(guess[0], low), min(guess[1], high)
                break
        else:
            lower = _middle(low, high)
        found = _count(b, a, lower, upper, room)
        if found.above >= count:
            low = upper
        elif found.above + found.inside < count:
            high = lower
        elif len(found.kept) == found.inside:
            place = found.inside - (count - found.above)
            return float(np.partition(found.kept, place)[place])
        elif np.nextafter(lower, math.inf) == upper:
            return lower
        else:
            low, high = lower, upper


@dataclasses.dataclass(frozen=True)
class _Count:
    above: int
    """Entries of at least the upper number."""
    inside: int
    """Entries of at least the lower and less than the upper."""
    kept: np.ndarray
    """Those inside, as far as there was room."""


def _count(b: Tensor, a: Tensor, lower: float, upper: float, room: int) -> _Count:
    above, from_lower, held = 0, 0, 0
    kept: list[np.ndarray] = []
    rows = min(len(b), tile_rows(a.shape[1]))
    is_above, is_inside = (np.empty(rows * a.shape[1], dtype=bool) for _ in range(2))
    for sizes in _sizes(b, a, rows):
        n = len(sizes)
        above += np.count_nonzero(np.greater_equal(sizes, upper, out=is_above[:n]))
        from_lower += np.count_nonzero(np.greater_equal(sizes, lower, out=is_inside[:n]))
        if held <= room:
            places = np.flatnonzero(np.not_equal(is_inside[:n], is_above[:n], out=is_inside[:n]))
            kept.append(sizes[places])
            held += len(places)
    return _Count(above, from_lower - above, np.concatenate(kept))


def _sizes(b: Tensor, a: Tensor, rows: int) -> Iterator[np.ndarray]:
    """|b a|, so many rows at a time in one dimension; a block lasts until the next is asked for."""
    memory = torch.empty(rows, a.shape[1], dtype=torch.float64)
    for first in range(0, len(b), rows):
        some = b[first : first + rows]
        yield torch.mm(some, a, out=memory[: len(some)]).abs_().view(-1).numpy()


def _guesses(b: Tensor, a: Tensor, share: float) -> tuple[list[tuple[float, float]], int]:
    """Ranges to look in, the best first, and how many entries to keep: those of a good guess, with room to spare."""
    total = len(b) * a.shape[1]
    sample = _sample(b, a, max(1 << 10, total >> 8))
    place, spread = int((1 - share) * len(sample)), 2 * math.isqrt(len(sample)) + 1  # 4 standard deviations at ½

    def rank(at: int) -> float:
        return 0.0 if at < 0 else math.inf if at >= len(sample) else float(sample[at])

    ranges = [(rank(place - width), rank(place + width)) for width in (spread, 0, 4 * spread)]
    # A range between equal numbers is that number: where many entries are equal, it is what is sought.
    return [(lower, max(upper, math.nextafter(lower, math.inf))) for lower, upper in ranges], (
        ROOM + 4 * spread * total // len(sample)
    )


def _sample(b: Tensor, a: Tensor, count: int) -> np.ndarray:
    """|entries| at `count` places, rising: every row, and every column, is taken about equally often."""
    columns = a.shape[1]
    step = next(step for step in range(round(0.618 * columns), 2 * columns) if math.gcd(step, columns) == 1)
    rising, sizes = a.T.contiguous(), torch.empty(count, dtype=torch.float64)
    some = max(1, TILE // len(a))
    for first in range(0, count, some):
        places = torch.arange(first, min(first + some, count))
        left, right = b[places * len(b) // count], rising[places * step % columns]
        torch.sum(left.mul_(right), dim=1, out=sizes[first : first + some])
    return np.sort(sizes.abs_().numpy())


def _middle(low: float, high: float) -> float:
    """A number between two, neither negative: the bits of such numbers rise with them. Not `low` unless it is next."""
    ends = np.array([low, high]).view(np.int64)
    return float(np.int64((int(ends[0]) + int(ends[1])) // 2).view(np.float64))
