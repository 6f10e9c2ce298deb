"""The arithmetic that joins numbers of a text: which results a few operands have, and in which unit.

The units decide what may be combined: money is added to money, a rate takes a part of anything, a price goes with a
quantity, an amount and a rate with a time.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

__all__ = [
    "DURATIONS", "Found", "Near", "Target", "Term", "like", "matches", "over", "pairs", "short", "singles", "sums",
    "times",
]

_WEIGHT = 1e-3  # a term smaller than this part of the other is not added to it
_REST = re.compile("其余|剩|另外?|余下|其他|扣除|合计|免赔|折")
_CALENDAR = {
    ("year", "month"): 12, ("year", "quarter"): 4, ("quarter", "month"): 3, ("week", "day"): 7,
    ("hour", "minute"): 60, ("minute", "second"): 60,
}  # fmt: skip
_PERIODS = {"半年": 2, "季": 4, "月": 12, "周": 52, "日": 365, "天": 365, "360": 360}
DURATIONS = frozenset(("year", "quarter", "month", "week", "day", "workday", "tradingday", "hour"))
"""Units of time."""


class Target(NamedTuple):
    """A number to be explained: `value` in the base unit, `step` the worth of one unit of its last written place."""

    value: Fraction
    step: Fraction
    unit: str
    kind: str
    steps: int  # in the value, without its sign


class Term(NamedTuple):
    """A number that a relation may use."""

    value: float
    text: str
    unit: str  # "" for a bare number


Near = tuple[float, float]
"""The least and the largest result that counts as one of the target's size."""

_PAIRS = 20_000  # pairs of operands whose results are kept
_SHORT = 20  # characters of a formula, at least, that no second step is built on
_TRIVIAL = frozenset((1.0, 10.0, 100.0))  # factors that change no digits
_UNITS = 4096  # pairs of units of which it is kept what they give

Found = tuple[float, str, str, tuple[Term, ...]]
"""(value, unit, form, terms): what terms give, and its formula, with {0} {1} {2} for the terms' texts."""


def _money(unit: str) -> bool:
    return len(unit) >= 3 and unit[:3].isupper() and unit[:3].isascii()


@functools.lru_cache(_UNITS)
def like(a: str, b: str) -> bool:
    """Whether two units may be added: the same, or money and a price in the same money."""
    return a == b or (_money(a) and _money(b) and a[:3] == b[:3])


@functools.lru_cache(_UNITS)
def times(a: str, b: str) -> str | None:
    """The unit of a × b, of two units, or None where the product means nothing."""
    for x, y in ((a, b), (b, a)):
        if y in ("1", ""):
            return x
        if _money(x):
            if len(x) > 4:
                return x[:3] if x[4:] == y or y in DURATIONS else None
            if y in DURATIONS or not _money(y):
                return x
        if y in DURATIONS and x not in DURATIONS and not _money(x):
            return x
    return None


@functools.lru_cache(_UNITS)
def over(a: str, b: str) -> str | None:
    """The unit of a ÷ b, of two units, or None."""
    if a == b or like(a, b):
        if _money(a) and len(a) == 3 and len(b) > 3:
            return b[4:]
        return "1"
    if b in ("1", ""):
        return a
    if _money(a) and not _money(b):
        return f"{a}/{b}" if len(a) == 3 and b not in DURATIONS else a
    if b in DURATIONS and a not in DURATIONS:
        return a
    return None


@functools.lru_cache(_UNITS)
def matches(unit: str, wanted: str) -> bool:
    """Whether a result of `unit` may be a number written in `wanted`."""
    return unit == wanted or (_money(wanted) and _money(unit) and unit[:3] == wanted[:3])


def singles(terms: Sequence[Term], target: Target, text: str, near: Near) -> Iterable[Found]:
    """Results of one operand, `near` enough: conversions of time, complements, compounding within the year, doubling;
    some only where the sentence speaks of them."""
    low, high = near
    return [one for term in terms for one in _single(term, target, text) if low <= one[0] <= high]


def _single(term: Term, target: Target, text: str) -> Iterable[Found]:
    v, unit, one = term.value, term.unit, (term,)
    if unit in DURATIONS and target.unit in DURATIONS and unit != target.unit and v != 1:
        for (long, short), count in _CALENDAR.items():
            if (unit, target.unit) == (long, short):
                yield v * count, short, f"{{0}} × {count}", one
            elif (target.unit, unit) == (long, short):
                yield v / count, long, f"{{0}} ÷ {count}", one
        if (unit, target.unit) == ("year", "day"):
            yield v * 365, "day", "{0} × 365", one
            yield v * 360, "day", "{0} × 360", one
    if unit == "1" and target.unit == "1":
        if 0 < v < 1 and _REST.search(text) is not None:
            yield 1 - v, "1", "1 − {0}", one
        if "倍" in text or "乘数" in text or "系数" in text:
            yield 1 / v, "1", "1 ÷ {0}", one
            if 0 < v < 1:
                yield 1 / (1 - v), "1", "1 ÷ (1 − {0})", one
        if 0 < v < 0.5:
            for word, m in _PERIODS.items():
                if word in text:
                    yield v / m, "1", f"{{0}} ÷ {m}", one
                    yield v * m, "1", f"{{0}} × {m}", one
                    yield (1 + v / m) ** m - 1, "1", f"(1 + {{0}} ÷ {m})^{m} − 1", one
                    if v < 0.05:
                        yield (1 + v) ** m - 1, "1", f"(1 + {{0}})^{m} − 1", one
    if unit == "1" and target.unit == "year" and 0 < v < 0.5 and "72" in text:
        yield 72 / (100 * v), "year", "72 ÷ (100 × {0})", one


_Formula = tuple[Callable[[float, float], float], str, str]
"""(of two values, unit, form)"""


def pairs(terms: Sequence[Term], wanted: str | None, near: Near) -> Iterable[Found]:
    """Results of two operands that are `near` enough, in the unit `wanted` or, where it is None, in any; of each two,
    in order, those that do not depend on their order, then of each order."""
    low, high = near
    for a, b in itertools.combinations(terms, 2):
        x, y = a.value, b.value
        for applies, formulas in _of_units(a.unit, b.unit, wanted):
            if applies(x, y):
                for formula, unit, form in formulas:
                    if low <= (value := formula(x, y)) <= high:
                        yield value, unit, form, (a, b)


@functools.lru_cache(_PAIRS)
def short(a: Term, b: Term) -> tuple[Found, ...]:
    """The positive results of two operands whose formulas are short enough for a second step.

    Kept, since neighbouring sentences are asked about with the same operands before them.
    """
    found = pairs((a, b), None, (sys.float_info.min, math.inf))
    return tuple(one for one in found if len(one[2]) < _SHORT)


_BY_RATE: tuple[tuple[Callable[[float, float], float], str], ...] = (
    (lambda x, r: x * (1 + r), "{0} × (1 + {1})"),
    (lambda x, r: x * (1 - r), "{0} × (1 − {1})"),
    (lambda x, r: x / (1 + r), "{0} ÷ (1 + {1})"),
    (lambda x, r: x / (1 - r), "{0} ÷ (1 − {1})"),
    (lambda x, r: x / (1 + r) * r, "{0} ÷ (1 + {1}) × {1}"),
)
"""What a rate makes of an amount."""


@functools.lru_cache(_UNITS)
def _of_units(
    a: str, b: str, wanted: str | None
) -> tuple[tuple[Callable[[float, float], bool], Sequence[_Formula]], ...]:
    """The formulas of operands in the units a and b that give the unit `wanted`, with the values they apply to."""
    found: list[tuple[Callable[[float, float], bool], list[_Formula]]] = []
    if a and like(a, b):
        unit = a if len(a) >= len(b) else b
        alike: list[_Formula] = [
            (operator.add, unit, "{0} + {1}"), (operator.sub, unit, "{0} − {1}"),
            (lambda x, y: y - x, unit, "{1} − {0}"),
        ]
        found.append((_of_one_size, alike))
        if unit != "1":
            alike += [
                (lambda x, y: (x - y) / y, "1", "({0} − {1}) ÷ {1}"),
                (lambda x, y: (y - x) / x, "1", "({1} − {0}) ÷ {0}"),
            ]
            found.append((_make_a_sum, [
                (lambda x, y: x / (x + y), "1", "{0} ÷ ({0} + {1})"),
                (lambda x, y: y / (x + y), "1", "{1} ÷ ({0} + {1})"),
            ]))
        else:
            found.append((_are_growth, [
                (lambda x, y: (1 + x) * (1 + y) - 1, "1", "(1 + {0}) × (1 + {1}) − 1"),
                (lambda x, y: (1 + x) / (1 + y) - 1, "1", "(1 + {0}) ÷ (1 + {1}) − 1"),
                (lambda x, y: (1 + y) / (1 + x) - 1, "1", "(1 + {1}) ÷ (1 + {0}) − 1"),
            ]))
    products: list[_Formula] = []
    if (unit := times(a, b)) is not None:
        products.append((operator.mul, unit, "{0} × {1}"))
    if (unit := over(a, b)) is not None:
        products.append((operator.truediv, unit, "{0} ÷ {1}"))
    if (unit := over(b, a)) is not None:
        products.append((lambda x, y: y / x, unit, "{1} ÷ {0}"))
    found.append((_are_factors, products))
    if b == "1" and a not in ("1", "") and a not in DURATIONS:
        found.append((lambda x, y: -1 < y < 1, [(formula, a, form) for formula, form in _BY_RATE]))
    elif a == "1" and b not in ("1", "") and b not in DURATIONS:
        found.append((lambda x, y: -1 < x < 1, [
            (_swapped(formula), b, form.format("{1}", "{0}")) for formula, form in _BY_RATE
        ]))
    kept = [
        (applies, tuple(one for one in formulas if wanted is None or matches(one[1], wanted)))
        for applies, formulas in found
    ]
    return tuple((applies, formulas) for applies, formulas in kept if formulas)


def _swapped(formula: Callable[[float, float], float]) -> Callable[[float, float], float]:
    return lambda x, y: formula(y, x)


def _of_one_size(x: float, y: float) -> bool:
    return _WEIGHT < abs(x / y) < 1 / _WEIGHT


def _make_a_sum(x: float, y: float) -> bool:
    return x + y != 0 and _of_one_size(x, y)


def _are_growth(x: float, y: float) -> bool:
    return abs(x) < 1 and abs(y) < 1 and _of_one_size(x, y)


def _are_factors(x: float, y: float) -> bool:
    return x not in _TRIVIAL and y not in _TRIVIAL


def sums(terms: Sequence[Term], target: Target, near: Near) -> Iterable[Found]:
    """Sums of three or more neighbours of the target's unit, and what the rest leaves of the first, `near` enough."""
    low, high = near
    unit = target.unit
    same = [t for t in terms if t.unit == unit]
    for start in range(len(same) - 2):
        first, before, last = same[start].value, same[start].value, same[start + 1].value
        total = first + last
        for end in range(start + 3, len(same) + 1):
            before, last = last, same[end - 1].value
            total += last
            values = (total, total / (end - start), 2 * first - total, total - 2 * last, 2 * last - total,
                      total - 2 * before)
            for i, value in enumerate(values):
                if low <= value <= high:
                    yield value, unit, *_summed(same[start:end], i)


def _summed(part: Sequence[Term], which: int) -> tuple[str, tuple[Term, ...]]:
    """The formula of one of the results of `sums`, in their order, and its terms."""
    terms = tuple(part) if which < 4 else (part[-1], *part[:-1])
    places = [f"{{{i}}}" for i in range(len(terms))]
    form = (
        " + ".join(places), f"({' + '.join(places)}) ÷ {len(places)}",
        " − ".join(places), f"{' + '.join(places[:-1])} − {places[-1]}",
    )[which if which < 4 else which - 2]
    return form, terms
