"""What an amount, a rate and a time give, and other formulas of finance with three operands."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from .formulas import DURATIONS, Found, Near, Target, Term, like, matches

__all__ = ["finance"]

_LONGEST = 480  # periods of compound interest
_YEAR = {
    "": ((1, "{2}"),), "year": ((1, "{2}"),), "month": ((12, "{2} ÷ 12"),), "quarter": ((4, "{2} ÷ 4"),),
    "day": ((360, "{2} ÷ 360"), (365, "{2} ÷ 365")),
}  # parts of a year, and how years are written in them
_SIMPLE = {
    unit: [(part, (
        f"{{0}} × {{1}} × {years}", f"{{0}} × (1 + {{1}} × {years})", f"{{0}} × (1 − {{1}} × {years})",
        f"{{0}} ÷ (1 + {{1}} × {years})",
    )) for part, years in parts]
    for unit, parts in _YEAR.items()
}  # the same with simple interest
_MONTHLY = {
    unit: (months, f"{{0}} ÷ ((1 − (1 + {{1}} ÷ 12)^(−{written})) ÷ ({{1}} ÷ 12))")
    for unit, months, written in (("year", 12, "({2} × 12)"), ("month", 1, "{2}"))
}  # months in a time, and the payment of a loan over it


def finance(terms: Sequence[Term], target: Target, near: Near) -> Iterable[Found]:
    """Results of an amount, a rate and a time, and other formulas of three operands, that are `near` enough."""
    amounts = [t for t in terms if t.unit not in ("1", "") and t.unit not in DURATIONS]
    rates = [t for t in terms if t.unit == "1" and -1 < t.value < 1]
    lengths = [t for t in terms if (t.unit in DURATIONS or (t.unit == "" and t.value <= 60)) and t.value > 0]
    if target.unit in DURATIONS:
        return
    if target.unit == "1":
        yield from _rates(terms, rates, near)
        yield from _returns(amounts, lengths, near)
        return
    low, high = near
    money = [t for t in amounts if matches(t.unit, target.unit)]
    for rate, time in itertools.product(rates, lengths):
        for formulas in (_interest, _annuity):
            for amount in money:
                for value, form in formulas(amount.value, rate.value, time.value, time.unit):
                    if low <= value <= high:
                        yield value, amount.unit, form, (amount, rate, time)
    for i, a in enumerate(money):
        for time in lengths:
            for rate in rates:
                if 0 < rate.value < 1 and low <= (value := a.value * (1 - rate.value) / time.value) <= high:
                    yield value, a.unit, "{0} × (1 − {1}) ÷ {2}", (a, rate, time)
            for b in money[:i] + money[i + 1 :]:
                if a.value > b.value and low <= (value := (a.value - b.value) / time.value) <= high:
                    yield value, a.unit, "({0} − {1}) ÷ {2}", (a, b, time)
        for p, q in itertools.permutations(rates, 2):
            if p.value > q.value:
                base = p.value - q.value
                if low <= (value := a.value / base) <= high:
                    yield value, a.unit, "{0} ÷ ({1} − {2})", (a, p, q)
                if low <= (value := a.value * (1 + q.value) / base) <= high:
                    yield value, a.unit, "{0} × (1 + {2}) ÷ ({1} − {2})", (a, p, q)


def _interest(p: float, r: float, n: float, unit: str) -> Iterable[tuple[float, str]]:
    """Of an amount, a rate and n years or other units of time: simple interest, its sum and present value; compound
    sum, interest and present value."""
    for part, (simple, whole, rest, present) in _SIMPLE.get(unit, ()):
        t = n / part
        interest = p * r * t
        yield interest, simple
        yield p + interest, whole
        yield p - interest, rest
        if 1 + r * t:
            yield p / (1 + r * t), present
    if n == int(n) and 1 < n <= _LONGEST:
        growth = (1 + r) ** n
        yield p * growth, "{0} × (1 + {1})^{2}"
        yield p * (growth - 1), "{0} × ((1 + {1})^{2} − 1)"
        yield p / growth, "{0} ÷ (1 + {1})^{2}"
        yield p * (1 - r) ** n, "{0} × (1 − {1})^{2}"


def _annuity(p: float, r: float, n: float, unit: str) -> Iterable[tuple[float, str]]:
    """Of a payment or a value, a rate and n periods: present and future value of an annuity, the payment, and a loan
    paid monthly."""
    if n != int(n) or not 1 < n <= _LONGEST or not r:
        return
    present, future = (1 - (1 + r) ** -n) / r, ((1 + r) ** n - 1) / r
    if not present or not future:
        return
    yield p * present, "{0} × ((1 − (1 + {1})^(−{2})) ÷ {1})"
    yield p / present, "{0} ÷ ((1 − (1 + {1})^(−{2})) ÷ {1})"
    yield p * future, "{0} × (((1 + {1})^{2} − 1) ÷ {1})"
    yield p / future, "{0} ÷ (((1 + {1})^{2} − 1) ÷ {1})"
    if unit in _MONTHLY:
        months, form = _MONTHLY[unit]
        i = r / 12
        yield p / ((1 - (1 + i) ** -(n * months)) / i), form


def _rates(terms: Sequence[Term], rates: Sequence[Term], near: Near) -> Iterable[Found]:
    """a + b × c, a + b × (c − a) and weighted means of two."""
    low, high = near
    factors = [(t.value, t) for t in terms if t.unit in ("1", "") and 0 < t.value < 10 and t.value != 1]
    for a, c in itertools.permutations(rates, 2):
        x, z = a.value, c.value
        for y, b in factors:
            mean, total = x + y * (z - x), x + y * z
            if low <= mean <= high and b is not a and b is not c:
                yield mean, "1", "{0} + {1} × ({2} − {0})", (a, b, c)
            if low <= total <= high and b is not a and b is not c:
                yield total, "1", "{0} + {1} × {2}", (a, b, c)


def _returns(amounts: Sequence[Term], lengths: Sequence[Term], near: Near) -> Iterable[Found]:
    """The yearly rate of interest or growth between two amounts."""
    low, high = near
    years = [(t.value / part, f"({written})", t) for t in lengths for part, written in _YEAR.get(t.unit, ())]
    for a, b in itertools.permutations(amounts, 2):
        if not like(a.unit, b.unit) or a.value <= 0 or b.value <= 0:
            continue
        part, growth = a.value / b.value, (a.value - b.value) / b.value
        for t, written, time in years:
            if low <= part / t <= high:
                yield part / t, "1", "{0} ÷ {1} ÷ " + written, (a, b, time)
            if low <= growth / t <= high:
                yield growth / t, "1", "({0} − {1}) ÷ {1} ÷ " + written, (a, b, time)
