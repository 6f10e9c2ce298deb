"""Characters of a text counted by kind, by one look into a table for each."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..overlap import Letters
from .clean import HAN

SUSPECT = "\ufffd\ue000-\uf8ff\U0003ffff-\U0010ffff锟烫屯ÃÂâäåæçèé"
"""Inside a character class: what garbled text begins with; the last twelve stand in other text as well."""
_SIZE = 0x40000
"""Code points of the table; those above it are counted as its last, which is suspect."""


_BITS = np.array([[combined >> bit & 1 for combined in range(16)] for bit in range(4)])


class Counts(NamedTuple):
    """How many characters of a text are Chinese, Latin letters, white space, and suspect of being garbled."""

    han: int
    latin: int
    space: int
    suspect: int


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """Code point → its kinds as bits, in the order of `Counts`."""
    table = np.zeros(_SIZE, np.uint8)
    everything = "".join(map(chr, range(_SIZE)))
    for bit, kind in enumerate((f"[{HAN}]+", "[A-Za-z]+", r"\s+", f"[{SUSPECT}]+")):
        for found in re.finditer(kind, everything):
            table[found.start() : found.end()] |= 1 << bit
    return table


def count(codes: Letters) -> Counts:
    """The counts of a text, given as its code points."""
    return Counts(*(_BITS @ np.bincount(_kinds().take(codes, mode="clip"), minlength=16)).tolist())
