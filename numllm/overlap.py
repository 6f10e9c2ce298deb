"""When two texts share wording: their letters, hashes of n letters in a row, and runs looked for in other texts.

One idea for near-duplicates in a corpus, for text that holds evaluation questions and for questions that a model may
have read: spaces, punctuation, width and case are not looked at.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Letters = NDArray[np.uint32]
Hashes = NDArray[np.uint64]

RUN = 20
"""Letters in a row that two texts share only when one was copied from the other or both from a third."""

_SIZE = 0x40000
"""Code points of the table: all planes that hold letters of living use."""
_MATHEMATICAL = range(0x1D400, 0x1D800)
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd, bits well mixed
_MULTIPLIERS = tuple(np.uint64(pow(int(_FIRST), power, 1 << 64)) for power in range(1, 64, 2))
"""One for each doubling: odd powers of an odd number, unlike each other."""
_FILTER_BITS = 22


@functools.cache
def _folded() -> Letters:
    """Code point → its letter or digit in one width and case (NFKC, lower case), 0 where it is neither.

    Characters that stand for several letters (㎡) become the first of them.
    """
    table = np.zeros(_SIZE, np.uint32)
    for found in re.finditer(r"[^\W_]+", spelled(np.arange(_SIZE))):
        table[found.start() : found.end()] = np.arange(found.start(), found.end())
    table[0x10000:0x20000] = 0
    for code in (*range(0x3400), *range(0xA000, 0xAC00), *range(0xD7A4, 0x10000), *_MATHEMATICAL):
        table[code] = 0
        for c in unicodedata.normalize("NFKC", chr(code)).lower():
            if c.isalnum():
                table[code] = ord(c)
                break
    return table


def code_points(text: str) -> Letters:
    """The code points of a text, uint32 (n,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def letters(text: str | Letters) -> Letters:
    """The code points of the letters and digits of a text, itself or its code points, uint32 (n,), in one width and
    case."""
    codes = code_points(text) if isinstance(text, str) else text
    found = _folded().take(codes, mode="clip")
    return found[found != 0]


def joined_letters(texts: Sequence[str]) -> tuple[Letters, NDArray[np.int64]]:
    """The letters of texts, one behind the other, and where those of each end, int64 (n,)."""
    found = _folded().take(code_points("".join(texts)), mode="clip")
    there = found != 0
    before = np.append(0, np.cumsum(there))
    return found[there], before[np.cumsum([len(text) for text in texts], dtype=np.int64)]


def mixed(values: Hashes) -> Hashes:
    """Hashes of hashes: a bijection of 64 bits (multiply, fold the high half down, multiply)."""
    values = values * _FIRST
    values ^= values >> np.uint64(32)
    values *= _SECOND
    values ^= values >> np.uint64(29)
    return values


def gram_hashes(text: Letters, n: int) -> Hashes:
    """Hashes of every n letters in a row, uint64 (len - n + 1,), or (0,): equal letters, equal hash.

    h = mixed(Σᵢ cᵢ mᵢ mod 2⁶⁴) with multipliers mᵢ that come from doubling the window, 1, 2, 4 …, and laying two
    that overlap side by side at the end: the cost grows with log n.
    """
    if n < 1:
        raise ValueError(f"a run has at least one letter, got {n}")
    if len(text) < n:
        return np.zeros(0, np.uint64)
    found, wide = text.astype(np.uint64), 1
    for multiplier in _MULTIPLIERS:
        if wide == n:
            break
        step = min(wide, n - wide)
        longer = found[:-step] * multiplier
        longer += found[step:]
        found, wide = longer, wide + step
    return mixed(found)


def spelled(text: Letters) -> str:
    """Letters as a string."""
    return text.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


class Runs:
    """The runs of `length` letters in named texts, to be found in others; memory is 20 bytes a letter."""

    def __init__(self, texts: Iterable[tuple[str, str]], length: int = RUN) -> None:
        """texts: (name, text); a name may come several times."""
        if length < 1:
            raise ValueError(f"a run has at least one letter, got {length}")
        self.length = length
        self.names: list[str] = []
        parts, hashes, starts, bounds, at = [], [], [], [0], 0
        for name, text in texts:
            part = letters(text)
            found = gram_hashes(part, length)
            self.names.append(name)
            parts.append(part)
            hashes.append(found)
            starts.append(np.arange(at, at + len(found)))
            at += len(part)
            bounds.append(at)
        self._letters = np.concatenate(parts) if parts else np.zeros(0, np.uint32)
        joined = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
        order = np.argsort(joined, kind="stable")
        self._hashes = joined[order]
        self._starts = np.concatenate(starts)[order] if starts else np.zeros(0, np.int64)
        self._bounds = np.array(bounds)
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[self._hashes >> np.uint64(64 - _FILTER_BITS)] = True

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, text: Letters, hashes: Hashes) -> Iterator[tuple[int, str]]:
        """(place of its first letter, name) of every run that a text shares: its letters, and their `gram_hashes` of
        this length."""
        likely = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _FILTER_BITS)])
        if not len(likely):
            return
        first = np.searchsorted(self._hashes, hashes[likely], "left")
        last = np.searchsorted(self._hashes, hashes[likely], "right")
        for place, low, high in zip(likely.tolist(), first.tolist(), last.tolist(), strict=True):
            run = text[place : place + self.length]
            for start in self._starts[low:high].tolist():
                if np.array_equal(self._letters[start : start + self.length], run):
                    yield place, self.names[np.searchsorted(self._bounds, start, "right") - 1]
