"""The arithmetic that joins numbers of a text: which results a few operands have, and in which unit.

The units decide what may be combined: money is added to money, a rate takes a part of anything, a price goes with a
quantity, an amount and a rate with a time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

__all__ = ["Found", "Target", "Term", "finance", "like", "matches", "over", "pair", "single", "sums", "times"]

_WEIGHT = 1e-3  # a term smaller than this part of the other is not added to it
_REST = re.compile("其余|剩|另外?|余下|其他|扣除|合计|免赔|折")
_CALENDAR = {
    ("year", "month"): 12, ("year", "quarter"): 4, ("quarter", "month"): 3, ("week", "day"): 7,
    ("hour", "minute"): 60, ("minute", "second"): 60,
}  # fmt: skip
_PERIODS = {"半年": 2, "季": 4, "月": 12, "周": 52, "日": 365, "天": 365, "360": 360}
_DURATIONS = frozenset(("year", "quarter", "month", "week", "day", "workday", "tradingday", "hour"))


class Target(NamedTuple):
    """A number to be explained: `value` in the base unit, `step` the worth of one unit of its last written place."""

    value: Fraction
    step: Fraction
    unit: str
    kind: str


class Term(NamedTuple):
    """A number that a relation may use."""

    value: float
    text: str
    unit: str  # "" for a bare number


_PAIRS = 20_000  # pairs of operands whose results are kept


class Found(NamedTuple):
    """A value that terms give by a formula, and how to write it."""

    value: float
    unit: str
    form: str  # with {0} {1} {2} for the terms' texts
    terms: tuple[Term, ...]


def _money(unit: str) -> bool:
    return len(unit) >= 3 and unit[:3].isupper() and unit[:3].isascii()


def like(a: str, b: str) -> bool:
    """Whether two units may be added: the same, or money and a price in the same money."""
    return a == b or (_money(a) and _money(b) and a[:3] == b[:3])


def times(a: Term, b: Term) -> str | None:
    """The unit of a × b, or None where the product means nothing."""
    for x, y in ((a.unit, b.unit), (b.unit, a.unit)):
        if y in ("1", ""):
            return x
        if _money(x):
            if len(x) > 4:
                return x[:3] if x[4:] == y or y in _DURATIONS else None
            if y in _DURATIONS or not _money(y):
                return x
        if y in _DURATIONS and x not in _DURATIONS and not _money(x):
            return x
    return None


def over(a: Term, b: Term) -> str | None:
    """The unit of a ÷ b, or None."""
    x, y = a.unit, b.unit
    if x == y or (like(x, y)):
        if _money(x) and len(x) == 3 and len(y) > 3:
            return y[4:]
        return "1"
    if y in ("1", ""):
        return x
    if _money(x) and not _money(y):
        return f"{x}/{y}" if len(x) == 3 and y not in _DURATIONS else x
    if y in _DURATIONS and x not in _DURATIONS:
        return x
    return None


def matches(unit: str, wanted: str) -> bool:
    """Whether a result of `unit` may be a number written in `wanted`."""
    return unit == wanted or (_money(wanted) and _money(unit) and unit[:3] == wanted[:3])


def single(term: Term, target: Target, text: str) -> Iterable[Found]:
    """Results of one operand: conversions of time, complements, compounding within the year, doubling."""
    v, unit, one = term.value, term.unit, (term,)
    if unit in _DURATIONS and target.unit in _DURATIONS and unit != target.unit and v != 1:
        for (long, short), count in _CALENDAR.items():
            if (unit, target.unit) == (long, short):
                yield Found(v * count, short, f"{{0}} × {count}", one)
            elif (target.unit, unit) == (long, short):
                yield Found(v / count, long, f"{{0}} ÷ {count}", one)
        if (unit, target.unit) == ("year", "day"):
            yield Found(v * 365, "day", "{0} × 365", one)
            yield Found(v * 360, "day", "{0} × 360", one)
    if unit == "1" and target.unit == "1":
        if 0 < v < 1 and _REST.search(text) is not None:
            yield Found(1 - v, "1", "1 − {0}", one)
        if "倍" in text or "乘数" in text or "系数" in text:
            yield Found(1 / v, "1", "1 ÷ {0}", one)
            if 0 < v < 1:
                yield Found(1 / (1 - v), "1", "1 ÷ (1 − {0})", one)
        if 0 < v < 0.5:
            for word, m in _PERIODS.items():
                if word in text:
                    yield Found(v / m, "1", f"{{0}} ÷ {m}", one)
                    yield Found(v * m, "1", f"{{0}} × {m}", one)
                    yield Found((1 + v / m) ** m - 1, "1", f"(1 + {{0}} ÷ {m})^{m} − 1", one)
                    if v < 0.05:
                        yield Found((1 + v) ** m - 1, "1", f"(1 + {{0}})^{m} − 1", one)
    if unit == "1" and target.unit == "year" and 0 < v < 0.5 and "72" in text:
        yield Found(72 / (100 * v), "year", "72 ÷ (100 × {0})", one)


@functools.lru_cache(_PAIRS)
def pair(a: Term, b: Term) -> tuple[Found, ...]:
    """Results of two operands that do not depend on their order, then of each order.

    Kept, since neighbouring sentences are asked about with the same operands before them.
    """
    return tuple(_pair(a, b))


def _pair(a: Term, b: Term) -> Iterable[Found]:
    x, y, two = a.value, b.value, (a, b)
    if like(a.unit, b.unit) and a.unit and _WEIGHT < abs(x / y) < 1 / _WEIGHT:
        unit = a.unit if len(a.unit) >= len(b.unit) else b.unit
        yield Found(x + y, unit, "{0} + {1}", two)
        yield Found(x - y, unit, "{0} − {1}", two)
        yield Found(y - x, unit, "{1} − {0}", two)
        if unit != "1":
            yield Found((x - y) / y, "1", "({0} − {1}) ÷ {1}", two)
            yield Found((y - x) / x, "1", "({1} − {0}) ÷ {0}", two)
            if x + y:
                yield Found(x / (x + y), "1", "{0} ÷ ({0} + {1})", two)
                yield Found(y / (x + y), "1", "{1} ÷ ({0} + {1})", two)
        elif abs(x) < 1 and abs(y) < 1:
            yield Found((1 + x) * (1 + y) - 1, "1", "(1 + {0}) × (1 + {1}) − 1", two)
            yield Found((1 + x) / (1 + y) - 1, "1", "(1 + {0}) ÷ (1 + {1}) − 1", two)
            yield Found((1 + y) / (1 + x) - 1, "1", "(1 + {1}) ÷ (1 + {0}) − 1", two)
    if x not in (1, 10, 100) and y not in (1, 10, 100):
        if (unit := times(a, b)) is not None:
            yield Found(x * y, unit, "{0} × {1}", two)
        if (unit := over(a, b)) is not None:
            yield Found(x / y, unit, "{0} ÷ {1}", two)
        if (unit := over(b, a)) is not None:
            yield Found(y / x, unit, "{1} ÷ {0}", two)
    for p, q in ((a, b), (b, a)):
        if q.unit == "1" and p.unit not in ("1", "") and p.unit not in _DURATIONS and -1 < q.value < 1:
            v, r, both = p.value, q.value, (p, q)
            yield Found(v * (1 + r), p.unit, "{0} × (1 + {1})", both)
            yield Found(v * (1 - r), p.unit, "{0} × (1 − {1})", both)
            yield Found(v / (1 + r), p.unit, "{0} ÷ (1 + {1})", both)
            yield Found(v / (1 - r), p.unit, "{0} ÷ (1 − {1})", both)
            yield Found(v / (1 + r) * r, p.unit, "{0} ÷ (1 + {1}) × {1}", both)


def _years(term: Term) -> Iterable[tuple[float, str]]:
    """The length of a duration in years and how that is written."""
    if term.unit in ("year", ""):
        yield term.value, "{2}"
    elif term.unit == "month":
        yield term.value / 12, "{2} ÷ 12"
    elif term.unit == "quarter":
        yield term.value / 4, "{2} ÷ 4"
    elif term.unit == "day":
        yield term.value / 360, "{2} ÷ 360"
        yield term.value / 365, "{2} ÷ 365"


def finance(terms: Sequence[Term], target: Target) -> Iterable[Found]:
    """Results of an amount, a rate and a time, and other formulas of three operands."""
    amounts = [t for t in terms if t.unit not in ("1", "") and t.unit not in _DURATIONS]
    rates = [t for t in terms if t.unit == "1" and -1 < t.value < 1]
    lengths = [t for t in terms if (t.unit in _DURATIONS or (t.unit == "" and t.value <= 60)) and t.value > 0]
    if target.unit in _DURATIONS:
        return
    if target.unit == "1":
        yield from _rates(terms, rates)
        yield from _returns(amounts, lengths)
        return
    money = [t for t in amounts if matches(t.unit, target.unit)]
    for rate in rates:
        r = rate.value
        for time in lengths:
            for amount in money:
                yield from _interest(amount, rate, time)
            n = time.value
            if n == int(n) and 1 < n <= 480 and r:
                for amount in money:
                    yield from _annuity(amount, rate, time)
    for i, a in enumerate(money):
        for time in lengths:
            for rate in rates:
                if 0 < rate.value < 1:
                    yield Found(
                        a.value * (1 - rate.value) / time.value, a.unit, "{0} × (1 − {1}) ÷ {2}", (a, rate, time)
                    )
            for b in money[:i] + money[i + 1 :]:
                if a.value > b.value:
                    yield Found((a.value - b.value) / time.value, a.unit, "({0} − {1}) ÷ {2}", (a, b, time))
        for p in rates:
            for q in rates:
                if p.value > q.value:
                    base = p.value - q.value
                    yield Found(a.value / base, a.unit, "{0} ÷ ({1} − {2})", (a, p, q))
                    yield Found(
                        a.value * (1 + q.value) / base, a.unit, "{0} × (1 + {2}) ÷ ({1} − {2})", (a, p, q)
                    )


def _interest(amount: Term, rate: Term, time: Term) -> Iterable[Found]:
    """Simple interest, its sum and present value; compound sum, interest and present value."""
    p, r, three = amount.value, rate.value, (amount, rate, time)
    for t, written in _years(time):
        interest = p * r * t
        yield Found(interest, amount.unit, f"{{0}} × {{1}} × {written}", three)
        yield Found(p + interest, amount.unit, f"{{0}} × (1 + {{1}} × {written})", three)
        yield Found(p - interest, amount.unit, f"{{0}} × (1 − {{1}} × {written})", three)
        yield Found(p / (1 + r * t), amount.unit, f"{{0}} ÷ (1 + {{1}} × {written})", three)
    n = time.value
    if n == int(n) and 1 < n <= 480:
        growth = (1 + r) ** n
        yield Found(p * growth, amount.unit, "{0} × (1 + {1})^{2}", three)
        yield Found(p * (growth - 1), amount.unit, "{0} × ((1 + {1})^{2} − 1)", three)
        yield Found(p / growth, amount.unit, "{0} ÷ (1 + {1})^{2}", three)
        yield Found(p * (1 - r) ** n, amount.unit, "{0} × (1 − {1})^{2}", three)


def _annuity(amount: Term, rate: Term, time: Term) -> Iterable[Found]:
    """Present and future value of an annuity, the payment, and a loan paid monthly."""
    p, r, n, three = amount.value, rate.value, time.value, (amount, rate, time)
    present, future = (1 - (1 + r) ** -n) / r, ((1 + r) ** n - 1) / r
    if not present or not future:
        return
    for factor, written in ((present, "((1 − (1 + {1})^(−{2})) ÷ {1})"), (future, "(((1 + {1})^{2} − 1) ÷ {1})")):
        yield Found(p * factor, amount.unit, f"{{0}} × {written}", three)
        yield Found(p / factor, amount.unit, f"{{0}} ÷ {written}", three)
    if time.unit in ("year", "month"):
        i, count = r / 12, n * 12 if time.unit == "year" else n
        factor = (1 - (1 + i) ** -count) / i
        months = "({2} × 12)" if time.unit == "year" else "{2}"
        yield Found(
            p / factor, amount.unit, f"{{0}} ÷ ((1 − (1 + {{1}} ÷ 12)^(−{months})) ÷ ({{1}} ÷ 12))", three
        )


def _rates(terms: Sequence[Term], rates: Sequence[Term]) -> Iterable[Found]:
    """a + b × c, a + b × (c − a) and weighted means of two."""
    factors = [t for t in terms if t.unit in ("1", "") and 0 < t.value < 10]
    for a in rates:
        for c in rates:
            if c is a:
                continue
            for b in factors:
                if b is a or b is c or b.value == 1:
                    continue
                three = (a, b, c)
                yield Found(a.value + b.value * (c.value - a.value), "1", "{0} + {1} × ({2} − {0})", three)
                yield Found(a.value + b.value * c.value, "1", "{0} + {1} × {2}", three)


def _returns(amounts: Sequence[Term], lengths: Sequence[Term]) -> Iterable[Found]:
    """The yearly rate of interest or growth between two amounts."""
    for a in amounts:
        for b in amounts:
            if a is b or not like(a.unit, b.unit) or a.value <= 0 or b.value <= 0:
                continue
            for time in lengths:
                three = (a, b, time)
                for t, written in _years(time):
                    yield Found(a.value / b.value / t, "1", "{0} ÷ {1} ÷ (" + written + ")", three)
                    yield Found((a.value - b.value) / b.value / t, "1", "({0} − {1}) ÷ {1} ÷ (" + written + ")", three)


def sums(terms: Sequence[Term], target: Target) -> Iterable[Found]:
    """Sums of three or more neighbours of the target's unit, and what the rest leaves of the first."""
    same = tuple(t for t in terms if t.unit == target.unit)
    for start in range(len(same) - 2):
        for end in range(start + 3, len(same) + 1):
            part = same[start:end]
            total = sum(t.value for t in part)
            unit = target.unit
            places = [f"{{{i}}}" for i in range(len(part))]
            yield Found(total, unit, " + ".join(places), part)
            yield Found(total / len(part), unit, f"({' + '.join(places)}) ÷ {len(part)}", part)
            for turned in (part, part[-1:] + part[:-1]):
                yield Found(2 * turned[0].value - total, unit, " − ".join(places), turned)
                yield Found(total - 2 * turned[-1].value, unit, f"{' + '.join(places[:-1])} − {places[-1]}", turned)
