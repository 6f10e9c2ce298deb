"""What can be seen of the options of several questions without reading them, as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .options import Asked

__all__ = ["traits"]

_BLANK, _ITSELF = ord(" "), np.array([0, 1, 1, 1, 0, 0])[:, None, None, None]  # an option is like itself in three ways
_TEN = math.log(10)


def traits(
    questions: Sequence[tuple[Asked, Sequence[Sequence[int]]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What can be seen of the options of each draw of several questions, the answer first: (questions, draws, traits,
    options) and the same of the marks that only the adversary sees.

    questions: of each, what is asked and the wrong options of each draw; where one has fewer draws than another, its
    first stands for those that are missing. Traits: value, length, significant digits, frequencies in the texts and
    among earlier answers, distance to the nearest number of the text, first digit, its rarity, share of digits that
    stand in the text, log distance to the nearest and to all other options, options that differ in one digit, of the
    same length, with the same first digit, the logarithm of the value. Marks: each first digit, a last digit that is
    5, that is even, a digit that comes twice; distance from the middle in logarithms; options of the same digits, ten
    times larger or smaller, that add up to the whole; whether a frequency is zero, and its logarithm.
    """
    most = max(len(draws) for _, draws in questions)
    places, looked = [], []
    for asked, draws in questions:
        place = {asked.m: 0}
        listed = [[0, *(place.setdefault(m, len(place)) for m in wrong)] for wrong in draws]
        places.append(listed + listed[:1] * (most - len(listed)))
        looked.append([asked.look(m) for m in place])
    width = max(len(looks) for looks in looked)
    flat = [look for looks in looked for look in (*looks, *looks[:1] * (width - len(looks)))]
    count = len(questions)
    static = np.array([look[0] for look in flat]).reshape(count, width, -1)
    digits = np.frombuffer("".join(look[1].ljust(16)[:16] for look in flat).encode(), np.uint8)
    digits = digits.reshape(count, width, 16)
    several = np.array([len(looks[0][1]) > 1 for looks in looked])[:, None, None]
    bags = np.where(several, np.sort(np.where(digits == _BLANK, 0, digits), axis=-1), digits)
    values, length = static[:, :, 0], static[:, :, 1]
    size = np.log(values)
    gap = np.abs(size[:, :, None] - size[:, None, :])
    same = length[:, :, None] == length[:, None, :]
    whole = np.array([1.0 if one.kind == "rate" and one.form.style != "f" else 100.0 for one, _ in questions])
    pairs = np.empty((6, count, width, width), dtype=bool)
    pairs[0] = same & ((digits[:, :, None] != digits[:, None, :]).sum(-1) == 1)
    pairs[1] = same
    pairs[2] = digits[:, :, None, 0] == digits[:, None, :, 0]
    pairs[3] = (bags[:, :, None] == bags[:, None, :]).all(-1)
    pairs[4] = np.abs(gap - _TEN) < 1e-9
    pairs[5] = np.abs(values[:, :, None] + values[:, None, :] - whole[:, None, None]) < 1e-9

    at = np.array(places)
    options = at.shape[2]
    one = np.arange(count)[:, None, None]
    rows, columns, question = at[:, :, :, None], at[:, :, None, :], one[..., None]
    gaps = gap[question, rows, columns]
    counts = pairs[:, question, rows, columns].sum(-1) - _ITSELF
    sizes = size[one, at]
    ordered = np.sort(sizes, axis=-1)
    seen = static[one, at].swapaxes(-1, -2)
    traits = np.empty((*at.shape[:2], 15, options))
    traits[:, :, :9] = seen[:, :, :9]
    traits[:, :, 9] = np.round((gaps + np.where(np.eye(options, dtype=bool), np.inf, 0.0)).min(-1), 9)
    traits[:, :, 10] = np.round(gaps.sum(-1), 9)
    traits[:, :, 11:14] = counts[:3].transpose(1, 2, 0, 3)
    traits[:, :, 14] = sizes
    marks = np.empty((*at.shape[:2], 19, options))
    marks[:, :, :14] = seen[:, :, 9:]
    middle = (ordered[:, :, (options - 1) // 2] + ordered[:, :, options // 2]) / 2
    marks[:, :, 14] = np.abs(sizes - middle[..., None])
    marks[:, :, 15:18] = counts[3:].transpose(1, 2, 0, 3)
    marks[:, :, 18] = gaps.max(-1)
    return traits, marks
