"""Which of all documents stay: one copy of each, training before held-out, and no held-out text that training holds."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import Progress
from ..overlap import Hashes
from .documents import Compared
from .duplicates import Sketches, repeats

SHARE = 0.5
"""Least share of a held-out document's runs of 20 letters in training documents for which it is dropped."""
_LEAST = 3
"""Sampled runs that a document must have to be judged by them."""
_HELD = 1 << 16
"""Held-out documents compared at a time."""
_CHUNK = 1 << 20
"""Runs of training documents read at a time."""
_FILTER = np.uint32(8)
_PLACE_BITS = 24


class _Side:
    """The documents of one split, in the order they are added: what they are called, and what they are compared by."""

    def __init__(self, folder: Path, name: str) -> None:
        self.keys = array("q")
        self.digests = array("Q")
        self.counts = array("I")
        """Sampled runs of each document."""
        self.sketches = Sketches(folder / f"{name}.sketches")
        self.path = folder / f"{name}.runs"
        self.runs = open(self.path, "wb")  # noqa: SIM115  (open as long as the object)

    def add(self, keys: list[int], digests: list[int], sketches: list[bytes], runs: list[bytes]) -> None:
        self.keys.extend(keys)
        self.digests.extend(digests)
        self.counts.extend(len(part) // 4 for part in runs)
        self.sketches.add(b"".join(sketches))
        self.runs.write(b"".join(runs))

    def close(self) -> None:
        self.sketches.close()
        self.runs.close()


class Choice:
    """Takes documents in the order of the shelf, decides, and says of each why it is dropped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._train, self._held = _Side(folder, ".train"), _Side(folder, ".heldout")

    def add(self, file: int, documents: Compared, held_out: Sequence[bool]) -> None:
        """The documents of a file that no filter drops: its number, and of each document whether it is held out."""
        keys = [file << _PLACE_BITS | ordinal for ordinal in documents.ordinals]
        for side, here in ((self._train, [not held for held in held_out]), (self._held, held_out)):
            if any(here):
                parts = (keys, documents.digests, documents.sketches, documents.runs)
                side.add(*(list(itertools.compress(part, here)) for part in parts))

    def decide(self, grams: Callable[[int, int], Hashes], progress: Progress) -> None:
        """Decides on all; grams: (file, place) → distinct n-grams of a document."""
        self._train.runs.flush()
        self._held.runs.flush()
        self._keys = np.array(self._train.keys + self._held.keys, np.int64)
        self._digests = np.array(self._train.digests + self._held.digests, np.uint64)
        self._first_held = len(self._train.keys)
        self._kept = np.full(len(self._keys), -1, np.int64)
        """Number of the document that is kept in a document's place; -1 of one that stays."""
        self._inside = np.zeros(len(self._keys), bool)
        """Whether a held-out document is dropped for its runs."""
        sketches = self._train.sketches
        for start in range(0, len(self._held.sketches), _HELD):
            sketches.add(self._held.sketches.read(start, start + _HELD).tobytes())
        found = repeats(sketches, lambda number: grams(*self._place(number)))
        for number, kept in progress(found, description="comparing", unit="duplicate"):
            self._kept[number] = kept
        self._compare_runs()

    def _place(self, number: int) -> tuple[int, int]:
        key = int(self._keys[number])
        return key >> _PLACE_BITS, key & ((1 << _PLACE_BITS) - 1)

    def _compare_runs(self) -> None:
        """Drops the held-out documents that stand, by half or more of their sampled runs, in training documents."""
        at = 0
        counts = np.array(self._held.counts, np.int64)
        for start in range(0, len(counts), _HELD):
            here = counts[start : start + _HELD]
            runs = np.fromfile(self._held.path, np.uint32, int(here.sum()), offset=4 * at)
            at += len(runs)
            owners = np.repeat(np.arange(len(here)), here)
            values, inverse = np.unique(runs, return_inverse=True)
            found = self._holders(values)[inverse]
            shares = np.bincount(owners[found >= 0], minlength=len(here)) / np.maximum(here, 1)
            for place in np.flatnonzero((shares >= SHARE) & (here >= _LEAST)).tolist():
                number = self._first_held + start + place
                if self._kept[number] < 0:
                    holders = found[owners == place]
                    holder = Counter(holders[holders >= 0].tolist()).most_common(1)[0][0]
                    self._inside[number] = True
                    self._kept[number] = holder

    def _holders(self, values: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The first training document that holds each of the runs (in order, distinct); -1 where none does."""
        found = np.full(len(values), -1, np.int64)
        likely = np.zeros(1 << (32 - int(_FILTER)), bool)
        likely[values >> _FILTER] = True
        for chunk, owners in self._train_runs():
            places = np.flatnonzero(likely[chunk >> _FILTER])
            where = np.searchsorted(values, chunk[places])
            where[where == len(values)] = 0
            right = values[where] == chunk[places] if len(values) else np.zeros(0, bool)
            where, places = where[right][::-1], places[right][::-1]  # the first of several is written last
            new = found[where] < 0
            found[where[new]] = owners(places[new])
        return found

    def _train_runs(self) -> Iterator[tuple[NDArray[np.uint32], Callable[[NDArray[np.int64]], NDArray[np.int64]]]]:
        ends = np.cumsum(np.array(self._train.counts, np.int64))
        at = 0
        while len(chunk := np.fromfile(self._train.path, np.uint32, _CHUNK, offset=4 * at)):
            yield chunk, lambda places, at=at: np.searchsorted(ends, at + places, "right")
            at += len(chunk)

    def verdict(self, file: int, place: int) -> tuple[str, tuple[int, int]] | None:
        """(reason, (file, place) of the document kept in its stead) of a document that goes, None of one that stays."""
        key = file << _PLACE_BITS | place
        number = int(np.searchsorted(self._keys[: self._first_held], key))
        if number == self._first_held or self._keys[number] != key:
            number = self._first_held + int(np.searchsorted(self._keys[self._first_held :], key))
        kept = int(self._kept[number])
        if kept < 0:
            return None
        while self._kept[kept] >= 0:  # held-out text that was kept until its runs were looked at
            kept = int(self._kept[kept])
        leaked = kept < self._first_held <= number
        if self._inside[number]:
            return "held-out text in train", self._place(kept)
        kind = "duplicate" if self._digests[number] == self._digests[kept] else "near-duplicate"
        return f"held-out {kind} of train" if leaked else kind, self._place(kept)

    def close(self) -> None:
        """Closes and removes the files."""
        for side in (self._train, self._held):
            side.close()
            side.path.unlink(missing_ok=True)
            side.sketches.path.unlink(missing_ok=True)
