"""Which numbers may be wrong options beside an answer, told by their size and by the text alone."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

from .form import UNIT8, Form

__all__ = ["SPREAD", "Limits", "limits"]

SPREAD = 16
"""A wrong option is less than so many times larger or smaller than the answer."""

_DIGITS = 13  # that an option has at most
_LONGEST = 60  # of a duration's unit, as many as there may always be


class Limits(NamedTuple):
    """The whole numbers that may be wrong options, written in the answer's form; a fraction's are not told by it."""

    least: int
    most: int
    barred: frozenset[int]  # of those between, the ones that may not: the answer and what stands in the text


def limits(form: Form, m: int, kind: str, taken: Set[int], bounds: tuple[int, int | None]) -> Limits:
    """What may be a wrong option beside the answer `m`: of its size, no value of the text, no impossible rate, no
    duration far longer than any.

    taken: values, in 1e-8, that stand in the question or the context; bounds: values, in 1e-8, that the sentence sets
    an option between: `____元以上50万元以下`.
    """
    scale = form.scale
    if form.style == "f":
        return Limits(1, 0, frozenset())
    low, high = bounds
    least = max(m // SPREAD, low // scale) + 1
    most = min(m * SPREAD, 10**_DIGITS) - 1
    if high is not None:
        most = min(most, (high - 1) // scale)
    whole = 100 * 10**form.decimals
    if kind == "rate" and m < whole and scale <= UNIT8 // 100:
        most = min(most, whole - 1)
    if kind == "duration":
        most = min(most, max(_LONGEST, 4 * m * scale // UNIT8) * UNIT8 // scale)
    return Limits(least, most, frozenset(value // scale for value in taken if value % scale == 0) | {m})
