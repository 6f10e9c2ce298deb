"""Characters of texts counted by kind, by one look into a table for each."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..overlap import code_points, spelled
from .clean import HAN

SUSPECT = "\ufffd\ue000-\uf8ff\U0003ffff-\U0010ffff锟烫屯ÃÂâäåæçèé"
"""Inside a character class: what garbled text begins with; the last twelve stand in other text as well."""
_SIZE = 0x40000
"""Code points of the table; those above it are counted as its last, which is suspect."""


_BITS = np.array([[combined >> bit & 1 for combined in range(16)] for bit in range(4)])


class Counts(NamedTuple):
    """How many characters of each of n texts are Chinese, Latin letters, white space, and suspect of being garbled:
    int64 (n,)."""

    han: NDArray[np.int64]
    latin: NDArray[np.int64]
    space: NDArray[np.int64]
    suspect: NDArray[np.int64]


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """Code point → its kinds as bits, in the order of `Counts`."""
    table = np.zeros(_SIZE, np.uint8)
    everything = spelled(np.arange(_SIZE))
    for bit, kind in enumerate((f"[{HAN}]+", "[A-Za-z]+", r"\s+", f"[{SUSPECT}]+")):
        for found in re.finditer(kind, everything):
            table[found.start() : found.end()] |= 1 << bit
    return table


def count(texts: Sequence[str]) -> Counts:
    """The counts of texts."""
    kinds = _kinds().take(code_points("".join(texts)), mode="clip")
    owners = np.repeat(16 * np.arange(len(texts)), [len(text) for text in texts])
    return Counts(*_BITS @ np.bincount(owners + kinds, minlength=16 * len(texts)).reshape(-1, 16).T)
