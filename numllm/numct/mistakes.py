"""What comes out when a relation is worked out with a common mistake.

Simple interest for compound and the other way round, one period forgotten or added, a rate per year taken for a rate
per month, a discount for a mark-up, a change taken on the wrong base, a share of the rest, percent for points.
"""

from __future__ import annotations

import re
from fractions import Fraction

from .arithmetic import evaluate

__all__ = ["mistakes"]

_NUMBER = r"[0-9.,%]+"
_SLIPS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"\(1 \+ ([^()]+)\)\^({_NUMBER})"), r"(1 + \1 × \2)"),  # simple for compound
    (re.compile(rf"\(1 \+ ([^()^]+) × ({_NUMBER})\)(?!\^)"), r"((1 + \1)^\2)"),  # compound for simple
    (re.compile(rf"\^({_NUMBER})"), r"^(\1 - 1)"),  # a period forgotten
    (re.compile(rf"\^({_NUMBER})"), r"^(\1 + 1)"),
    (re.compile(r" [÷×] (?:12|4|360|365)\b"), ""),  # a rate per year for one per month
    (re.compile(r"1 \+ (?![0-9]+\))"), "1 - "),  # mark-up and discount
    (re.compile(r"1 [-−] (?![0-9]+\))"), "1 + "),
    (re.compile(rf"^\(({_NUMBER}) [-−] ({_NUMBER})\) ÷ \2$"), r"(\1 - \2) ÷ \1"),  # the wrong base
    (re.compile(rf"^({_NUMBER}) × ({_NUMBER})$"), r"\1 × (1 - \2)"),  # the rest of it
    (re.compile(rf"^({_NUMBER}) ÷ ({_NUMBER})$"), r"\2 ÷ \1"),
    (re.compile(rf"^({_NUMBER}) [-−] ({_NUMBER})$"), r"(\1 - \2) ÷ \2"),  # percent for points
    (re.compile(rf"^({_NUMBER}) [-−] ({_NUMBER})$"), r"\1 + \2"),
    (re.compile(rf"^({_NUMBER}) \+ ({_NUMBER})$"), r"\1 - \2"),
    (re.compile(rf"^(.+ × .+) × {_NUMBER}$"), r"\1"),  # a factor left out
)


def mistakes(relation: str) -> list[Fraction]:
    """The positive values of a relation's left side with one mistake in it, each once, in no order of size.

    >>> mistakes("80000 × (1 + 0.05)^2 = 88200")[0]
    Fraction(88000, 1)
    """
    left = re.split("[=≈]", relation)[0].strip()
    right = evaluate(left)
    found: list[Fraction] = []
    for pattern, slip in _SLIPS:
        wrong, count = pattern.subn(slip, left, count=1)
        value = evaluate(wrong) if count else None
        if value is not None and value > 0 and value != right and value not in found:
            found.append(value)
    return found
