"""What can be seen of the options of several questions without reading them, as arrays."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .options import Asked

__all__ = ["traits"]

_SEEN = (0, 1, 8, 2, 3, 5, 9, 10, 6)  # of what `Asked.look` tells, the first traits
_ITSELF = np.array([0, 1, 1, 1, 0, 0], dtype=np.uint8)[:, None, None, None]  # an option is like itself in three ways
_FIRST = np.arange(1.0, 10.0)  # digits
_DIGITS = 16  # an option has fewer
_TEN = math.log(10)


def traits(
    questions: Sequence[tuple[Asked, Sequence[Sequence[int]]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What can be seen of the options of each draw of several questions, the answer first: (options, questions, draws,
    traits) and the same of the marks that only the adversary sees. In this order numpy is fast.

    questions: of each, what is asked and the wrong options of each draw; where one has fewer draws than another, its
    first stands for those that are missing. Traits: value, length, significant digits, frequencies in the texts and
    among earlier answers, distance to the nearest number of the text, first digit, its rarity, share of digits that
    stand in the text, log distance to the nearest and to all other options, options that differ in one digit, of the
    same length, with the same first digit, the logarithm of the value. Marks: each first digit, a last digit that is
    5, that is even, a digit that comes twice; distance from the middle in logarithms; options of the same digits, ten
    times larger or smaller, that add up to the whole; whether a frequency is zero, and its logarithm.
    """
    most = max(len(draws) for _, draws in questions)
    places: list[list[int]] = []
    looks: list[tuple[tuple[float, ...], str]] = []
    for asked, draws in questions:
        place = {asked.m: len(looks)}
        listed = [[len(looks), *(place.setdefault(m, len(looks) + len(place)) for m in wrong)] for wrong in draws]
        places += listed + listed[:1] * (most - len(listed))
        looks += [asked.look(m) for m in place]
    at = np.ascontiguousarray(np.array(places).T).reshape(-1, len(questions), most)
    options = len(at)
    seen = np.fromiter(itertools.chain.from_iterable(seen for seen, _ in looks), np.float64).reshape(len(looks), -1)
    digits = np.frombuffer("".join([shown.ljust(_DIGITS) for _, shown in looks]).encode(), np.uint8)
    digits = np.ascontiguousarray(digits.reshape(-1, _DIGITS).T)[:, at]
    values, length, bags, first = (column[at] for column in seen.T[[0, 1, 7, 9]])
    sizes = np.log(values)
    gaps = np.abs(sizes[:, None] - sizes)
    whole = np.array([1.0 if one.kind == "rate" and one.form.style != "f" else 100.0 for one, _ in questions])
    alike = np.empty((6, *gaps.shape), dtype=bool)
    alike[1] = length[:, None] == length
    changed = (digits[:, :, None] != digits[:, None]).view(np.uint8)
    alike[0] = alike[1] & (np.add.reduce(changed, axis=0, dtype=np.uint8) == 1)
    alike[2] = first[:, None] == first
    alike[3] = bags[:, None] == bags
    alike[4] = np.abs(gaps - _TEN) < 1e-9
    alike[5] = np.abs(values[:, None] + values - whole[:, None]) < 1e-9
    counts = np.add.reduce(alike.view(np.uint8), axis=2, dtype=np.uint8) - _ITSELF
    counts = np.moveaxis(counts, 0, -1)

    traits = np.empty((*at.shape, 15))
    traits[..., :9] = seen[:, _SEEN][at]
    traits[..., 9] = np.round((gaps + _apart(options)).min(1), 9)
    traits[..., 10] = np.round(gaps.sum(1), 9)
    traits[..., 11:14] = counts[..., :3]
    traits[..., 14] = sizes
    marks = np.empty((*at.shape, 19))
    marks[..., :9] = first[..., None] == _FIRST
    marks[..., 9:12] = seen[:, 11:14][at]
    marks[..., 12] = traits[..., 3] == 0
    marks[..., 13] = seen[:, 4][at]
    ordered = np.sort(sizes, axis=0)
    middle = (ordered[(options - 1) // 2] + ordered[options // 2]) / 2
    marks[..., 14] = np.abs(sizes - middle)
    marks[..., 15:18] = counts[..., 3:]
    marks[..., 18] = gaps.max(1)
    return traits, marks


@functools.lru_cache
def _apart(options: int) -> NDArray[np.float64]:
    """Infinity on the diagonal, so that no option is its own nearest."""
    return np.where(np.eye(options, dtype=bool), np.inf, 0.0)[:, :, None, None]
