"""Near-duplicates: MinHash sketches of documents, and which of many documents repeat an earlier one.

The sketch is fast similarity sketching (Dahlgaard, Knudsen and Thorup, arXiv 1704.04370): every n-gram is hashed into
one of the bins, a bin keeps its least; bins left empty are filled by further rounds of hashing. A bin of two sketches
agrees with the probability |A ∩ B| / |A ∪ B|, the Jaccard similarity of the documents' sets of n-grams, at the cost of
one hash an n-gram, not one for each bin.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..overlap import Hashes, Letters, gram_hashes, letters, mixed

Sketch = NDArray[np.uint16]

GRAM = 5
"""Letters of an n-gram."""
SIMILAR = 0.8
"""Least Jaccard similarity of the sets of n-grams of near-duplicates."""
BINS = 128
_ROWS = 4
"""Bins of a band. Documents are compared when one of the 32 bands agrees as a whole: at a similarity of 0.8 all but
(1 - 0.8⁴)³² = 5e-8 are, at 0.3 one in four."""
_BIN_SHIFT = np.uint64(64 - BINS.bit_length() + 1)
_ROUNDS = 16
"""Rounds that hash into every bin; after them each empty bin has a round of its own."""
_SURE, _UNLIKE = 0.95, 0.65
"""Shares of agreeing bins, four standard errors from 0.8, beyond which the n-grams themselves are not looked at."""
_BLOCK = 1 << 17
"""Documents whose sketches are in memory at a time: 32 MiB of sketches, and as much again for their buckets."""


def sketches(text: Letters, ends: NDArray[np.int64]) -> Sketch:
    """The sketches of n documents, uint16 (n, 128): their letters, one behind the other, and where each ends.

    Documents of fewer than 5 letters share one.
    """
    hashes = gram_hashes(text, GRAM)
    spans = [(start, max(end - GRAM + 1, start)) for start, end in itertools.pairwise([0, *ends.tolist()])]
    sizes = np.array([end - start for start, end in spans], np.int64)
    grams = np.concatenate([hashes[:0], *(hashes[start:end] for start, end in spans)])
    owners = np.repeat(np.arange(len(spans)), sizes)
    found = np.zeros(len(spans) * BINS, np.uint16)
    empty = np.repeat(sizes > 0, BINS)
    for _ in range(_ROUNDS):
        for start, end in itertools.pairwise([0, *np.cumsum(sizes).tolist()]):
            grams[start:end].sort()
        bins = owners * BINS + (grams >> _BIN_SHIFT).astype(np.int64)
        least = np.flatnonzero(np.diff(bins, prepend=-1))
        least = least[empty[bins[least]]]
        found[bins[least]] = grams[least].astype(np.uint16)
        empty[bins[least]] = False
        unfinished = empty.reshape(-1, BINS).any(axis=1)
        if not unfinished.any():
            return found.reshape(-1, BINS)
        left = unfinished[owners]
        grams, owners, sizes = mixed(grams[left] + np.uint64(1)), owners[left], sizes * unfinished
    for place in np.flatnonzero(empty).tolist():
        mine = grams[owners == place // BINS]
        found[place] = mixed(mine + np.uint64(place % BINS)).min().astype(np.uint16)
    return found.reshape(-1, BINS)


def gram_set(text: str) -> Hashes:
    """The distinct n-grams of a text, as hashes in order."""
    grams = np.sort(gram_hashes(letters(text), GRAM))
    first = np.ones(len(grams), bool)
    first[1:] = grams[1:] != grams[:-1]
    return grams[first]


def jaccard(a: Hashes, b: Hashes) -> float:
    """Similarity of two sets of n-grams, |A ∩ B| / |A ∪ B|; 1 when neither has any."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    total = len(a) + len(b) - shared
    return shared / total if total else 1.0


class Sketches:
    """Sketches in a file, one behind the other, in the order they are added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "w+b")  # noqa: SIM115  (open as long as the object)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, sketches: bytes) -> None:
        """Adds sketches as bytes."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(sketches)
        self._count += len(sketches) // (2 * BINS)

    def read(self, start: int, stop: int) -> Sketch:
        """Sketches start to stop, (n, 128)."""
        self._file.seek(2 * BINS * start)
        return np.frombuffer(self._file.read(2 * BINS * (stop - start)), np.uint16).reshape(-1, BINS)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def repeats(
    sketches: Sketches, grams: Callable[[int], Hashes], *, block: int = _BLOCK
) -> Iterator[tuple[int, int]]:
    """(number, number of the earlier one kept) of every document that repeats an earlier one, block by block.

    A document is kept unless its similarity to one kept before it is at least 0.8, so that no two kept documents are
    near-duplicates, and each other one is a near-duplicate of the one it is named with. grams: number → the distinct
    n-grams of a document, asked for where the sketches do not decide. Memory: two blocks of sketches, whatever
    the count; beyond one block the time grows with the square of the number of blocks.
    """
    kept_numbers: list[NDArray[np.int64]] = []
    for start in range(0, len(sketches), block):
        here = sketches.read(start, start + block)
        numbers = np.arange(start, start + len(here))
        for earlier in kept_numbers:
            before = sketches.read(int(earlier[0]), int(earlier[-1]) + 1)[earlier - earlier[0]]
            found = dict(_matches(before, here, earlier, numbers, grams))
            yield from found.items()
            left = [k for k, number in enumerate(numbers) if number not in found]
            here, numbers = here[left], numbers[left]
        found = dict(_matches(here[:0], here, numbers[:0], numbers, grams))
        yield from found.items()
        kept = np.array([number for number in numbers if number not in found], np.int64)
        if len(kept):
            kept_numbers.append(kept)


def _matches(
    before: Sketch, here: Sketch, kept: NDArray[np.int64], numbers: NDArray[np.int64], grams: Callable[[int], Hashes]
) -> Iterator[tuple[int, int]]:
    """(number, kept number) of the documents of `here` that repeat one of `before`, or of `here` when `before` is
    empty."""
    joined, names = np.concatenate([before, here]), np.concatenate([kept, numbers])
    buckets = _buckets(joined)
    holder = np.full(int(buckets.max(initial=-1)) + 1, -1, np.int32)
    """The first document kept in each bucket."""
    more: dict[int, list[int]] = {}
    """Further ones, which few buckets have."""
    for place in np.flatnonzero((buckets >= 0).any(axis=1)).tolist():
        mine = buckets[place][buckets[place] >= 0]
        first = holder[mine]
        if place >= len(before):
            rivals = set(first[first >= 0].tolist())
            rivals.update(*(more[bucket] for bucket in mine.tolist() if bucket in more))
            rival = _first_similar(joined, names, place, sorted(rivals), grams)
            if rival is not None:
                yield int(names[place]), int(names[rival])
                continue
            if len(before):
                continue
        holder[mine[first < 0]] = place
        for bucket in mine[first >= 0].tolist():
            more.setdefault(bucket, []).append(place)


def _buckets(sketches: Sketch) -> NDArray[np.int32]:
    """For each sketch and band the number of the bucket it shares with others, -1 where it is alone: (n, 32)."""
    bands = np.ascontiguousarray(sketches).view(np.uint64)
    found = np.full(bands.shape, -1, np.int32)
    count = 0
    for band in range(bands.shape[1]):
        column = bands[:, band]
        order = np.argsort(column, kind="stable")
        same = column[order[1:]] == column[order[:-1]]
        shared = np.append(same, False) | np.append(False, same)
        bucket = np.cumsum(~np.append(False, same)) - 1
        found[order[shared], band] = bucket[shared] + count
        count += int(bucket[-1]) + 1 if len(bucket) else 0
    return found


def _first_similar(
    joined: Sketch, names: NDArray[np.int64], place: int, rivals: list[int], grams: Callable[[int], Hashes]
) -> int | None:
    """The first of the rivals that is a near-duplicate of the document."""
    if not rivals:
        return None
    agreeing = (joined[rivals] == joined[place]).mean(axis=1)
    for rival, share in zip(rivals, agreeing, strict=True):
        if share >= _SURE or (
            share >= _UNLIKE and jaccard(grams(int(names[place])), grams(int(names[rival]))) >= SIMILAR
        ):
            return rival
    return None
