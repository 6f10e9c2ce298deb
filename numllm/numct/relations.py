"""Whether a number follows from other numbers by arithmetic, and how.

`Finder` tries typed relations from few operands to many: unit conversions, sums, differences, shares, changes,
percentages of an amount, price × quantity, simple and compound interest, present value, annuities, straight-line
depreciation, perpetuities, weighted means, and two steps of + − × ÷. The units decide what may be combined.

A relation counts only where it is unlikely to be chance. Of `n` results of the right unit and size tried so far,
on a grid as coarse as the answer is round, about n / (2.7 s) would meet an answer whose significant digits are the
whole number s; this must stay under `CHANCE`, or `CHANCE_CUED` where the sentence speaks of a result (合计, 因此, 为).
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from ..numbers import Number
from .arithmetic import evaluate

__all__ = ["Relation", "Target", "find_relation"]

CHANCE = 0.04
CHANCE_CUED = 0.12
_ROUNDING = 2  # a hit by rounding is so many times easier
_WEIGHT = 1e-3  # a term smaller than this part of the other is not added to it
_SENTENCE, _CONTEXT = 8, 8  # operands of the sentence and of the context at most, the nearest
_CUES = re.compile(
    r"合计|总计|总共|一共|共计?|总额|总和|之和|因此|所以|于是|可知|可见|由此|即|就是|相当于|等于|相差|差额|余下|其余|剩余|剩下|只剩|折合|"
    r"换算|扣除|减去|净|得到|得出|应为|则|变为|升至|增至|降至|升到|降到|增长|下降|上升|高出|多出|少|占|比例为|[=＝≈]"
)
_ROUNDED = re.compile("约|[≈]|左右|将近|接近")
_REST = re.compile("其余|剩|另外?|余下|其他|扣除|合计|免赔|折")
_CALENDAR = {
    ("year", "month"): 12, ("year", "quarter"): 4, ("quarter", "month"): 3, ("week", "day"): 7,
    ("hour", "minute"): 60, ("minute", "second"): 60,
}  # fmt: skip
_PERIODS = {"半年": 2, "季": 4, "月": 12, "周": 52, "日": 365, "天": 365, "360": 360}


class Target(NamedTuple):
    """A number to be explained: `value` in the base unit, `step` the worth of one unit of its last written place."""

    value: Fraction
    step: Fraction
    unit: str
    kind: str


class Relation(NamedTuple):
    """How a number follows: `text` "1000000 × 0.05 = 50000", `operands` the texts' numbers it uses."""

    text: str
    operands: int


class _Term(NamedTuple):
    value: float
    text: str
    unit: str  # "" for a bare number


class _Found(NamedTuple):
    value: float
    unit: str
    form: str  # with {0} {1} {2} for the terms' texts
    terms: tuple[_Term, ...]


def _text(value: str) -> str:
    return f"({value})" if "/" in value or value.startswith("-") else value


def _terms(numbers: Iterable[Number], limit: int, known: list[_Term]) -> list[_Term]:
    """Numbers as operands, each value and unit once, after the operands already known."""
    found = list(known)
    seen = {(term.value, term.unit) for term in known}
    for number in numbers:
        if number.low is not None or ":" in number.value or len(number.value) > 18:
            continue
        if not (number.variable or (number.kind in ("count", "other") and number.unit != "元组")):
            continue
        top, _, bottom = number.value.partition("/")
        try:
            value = float(top) / float(bottom or 1)
        except ValueError:
            continue
        if not value or (value, number.unit) in seen:
            continue
        seen.add((value, number.unit))
        found.append(_Term(value, _text(number.value), number.unit))
        if len(found) == len(known) + limit:
            break
    return found


_DURATIONS = frozenset(("year", "quarter", "month", "week", "day", "workday", "tradingday", "hour"))


def _money(unit: str) -> bool:
    return len(unit) >= 3 and unit[:3].isupper() and unit[:3].isascii()


def _like(a: str, b: str) -> bool:
    """Whether two units may be added: the same, or money and a price in the same money."""
    return a == b or (_money(a) and _money(b) and a[:3] == b[:3])


def _times(a: _Term, b: _Term) -> str | None:
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


def _over(a: _Term, b: _Term) -> str | None:
    """The unit of a ÷ b, or None."""
    x, y = a.unit, b.unit
    if x == y or (_like(x, y)):
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


def _matches(unit: str, wanted: str) -> bool:
    """Whether a result of `unit` may be a number written in `wanted`."""
    return unit == wanted or (_money(wanted) and _money(unit) and unit[:3] == wanted[:3])


def _single(term: _Term, target: Target, text: str) -> Iterable[_Found]:
    """Results of one operand: conversions of time, complements, compounding within the year, doubling."""
    v, unit, one = term.value, term.unit, (term,)
    if unit in _DURATIONS and target.unit in _DURATIONS and unit != target.unit and v != 1:
        for (long, short), count in _CALENDAR.items():
            if (unit, target.unit) == (long, short):
                yield _Found(v * count, short, f"{{0}} × {count}", one)
            elif (target.unit, unit) == (long, short):
                yield _Found(v / count, long, f"{{0}} ÷ {count}", one)
        if (unit, target.unit) == ("year", "day"):
            yield _Found(v * 365, "day", "{0} × 365", one)
            yield _Found(v * 360, "day", "{0} × 360", one)
    if unit == "1" and target.unit == "1":
        if 0 < v < 1 and _REST.search(text) is not None:
            yield _Found(1 - v, "1", "1 − {0}", one)
        if "倍" in text or "乘数" in text or "系数" in text:
            yield _Found(1 / v, "1", "1 ÷ {0}", one)
            if 0 < v < 1:
                yield _Found(1 / (1 - v), "1", "1 ÷ (1 − {0})", one)
        if 0 < v < 0.5:
            for word, m in _PERIODS.items():
                if word in text:
                    yield _Found(v / m, "1", f"{{0}} ÷ {m}", one)
                    yield _Found(v * m, "1", f"{{0}} × {m}", one)
                    yield _Found((1 + v / m) ** m - 1, "1", f"(1 + {{0}} ÷ {m})^{m} − 1", one)
                    if v < 0.05:
                        yield _Found((1 + v) ** m - 1, "1", f"(1 + {{0}})^{m} − 1", one)
    if unit == "1" and target.unit == "year" and 0 < v < 0.5 and "72" in text:
        yield _Found(72 / (100 * v), "year", "72 ÷ (100 × {0})", one)


def _pair(a: _Term, b: _Term) -> Iterable[_Found]:
    """Results of two operands that do not depend on their order, then of each order."""
    x, y, two = a.value, b.value, (a, b)
    if _like(a.unit, b.unit) and a.unit and _WEIGHT < abs(x / y) < 1 / _WEIGHT:
        unit = a.unit if len(a.unit) >= len(b.unit) else b.unit
        yield _Found(x + y, unit, "{0} + {1}", two)
        yield _Found(x - y, unit, "{0} − {1}", two)
        yield _Found(y - x, unit, "{1} − {0}", two)
        if unit != "1":
            yield _Found((x - y) / y, "1", "({0} − {1}) ÷ {1}", two)
            yield _Found((y - x) / x, "1", "({1} − {0}) ÷ {0}", two)
            if x + y:
                yield _Found(x / (x + y), "1", "{0} ÷ ({0} + {1})", two)
                yield _Found(y / (x + y), "1", "{1} ÷ ({0} + {1})", two)
        elif abs(x) < 1 and abs(y) < 1:
            yield _Found((1 + x) * (1 + y) - 1, "1", "(1 + {0}) × (1 + {1}) − 1", two)
            yield _Found((1 + x) / (1 + y) - 1, "1", "(1 + {0}) ÷ (1 + {1}) − 1", two)
            yield _Found((1 + y) / (1 + x) - 1, "1", "(1 + {1}) ÷ (1 + {0}) − 1", two)
    if x not in (1, 10, 100) and y not in (1, 10, 100):
        if (unit := _times(a, b)) is not None:
            yield _Found(x * y, unit, "{0} × {1}", two)
        if (unit := _over(a, b)) is not None:
            yield _Found(x / y, unit, "{0} ÷ {1}", two)
        if (unit := _over(b, a)) is not None:
            yield _Found(y / x, unit, "{1} ÷ {0}", two)
    for p, q in ((a, b), (b, a)):
        if q.unit == "1" and p.unit not in ("1", "") and p.unit not in _DURATIONS and -1 < q.value < 1:
            v, r, both = p.value, q.value, (p, q)
            yield _Found(v * (1 + r), p.unit, "{0} × (1 + {1})", both)
            yield _Found(v * (1 - r), p.unit, "{0} × (1 − {1})", both)
            yield _Found(v / (1 + r), p.unit, "{0} ÷ (1 + {1})", both)
            yield _Found(v / (1 - r), p.unit, "{0} ÷ (1 − {1})", both)
            yield _Found(v / (1 + r) * r, p.unit, "{0} ÷ (1 + {1}) × {1}", both)


def _years(term: _Term) -> Iterable[tuple[float, str]]:
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


def _finance(terms: Sequence[_Term], target: Target) -> Iterable[_Found]:
    """Results of an amount, a rate and a time, and other formulas of three operands."""
    amounts = [t for t in terms if t.unit not in ("1", "") and t.unit not in _DURATIONS]
    rates = [t for t in terms if t.unit == "1" and -1 < t.value < 1]
    times = [t for t in terms if (t.unit in _DURATIONS or (t.unit == "" and t.value <= 60)) and t.value > 0]
    if target.unit in _DURATIONS:
        return
    if target.unit == "1":
        yield from _rates(terms, rates)
        yield from _returns(amounts, times)
        return
    money = [t for t in amounts if _matches(t.unit, target.unit)]
    for rate in rates:
        r = rate.value
        for time in times:
            for amount in money:
                yield from _interest(amount, rate, time)
            n = time.value
            if n == int(n) and 1 < n <= 480 and r:
                for amount in money:
                    yield from _annuity(amount, rate, time)
    for i, a in enumerate(money):
        for time in times:
            for rate in rates:
                if 0 < rate.value < 1:
                    yield _Found(
                        a.value * (1 - rate.value) / time.value, a.unit, "{0} × (1 − {1}) ÷ {2}", (a, rate, time)
                    )
            for b in money[:i] + money[i + 1 :]:
                if a.value > b.value:
                    yield _Found((a.value - b.value) / time.value, a.unit, "({0} − {1}) ÷ {2}", (a, b, time))
        for p in rates:
            for q in rates:
                if p.value > q.value:
                    base = p.value - q.value
                    yield _Found(a.value / base, a.unit, "{0} ÷ ({1} − {2})", (a, p, q))
                    yield _Found(
                        a.value * (1 + q.value) / base, a.unit, "{0} × (1 + {2}) ÷ ({1} − {2})", (a, p, q)
                    )


def _interest(amount: _Term, rate: _Term, time: _Term) -> Iterable[_Found]:
    """Simple interest, its sum and present value; compound sum, interest and present value."""
    p, r, three = amount.value, rate.value, (amount, rate, time)
    for t, written in _years(time):
        interest = p * r * t
        yield _Found(interest, amount.unit, f"{{0}} × {{1}} × {written}", three)
        yield _Found(p + interest, amount.unit, f"{{0}} × (1 + {{1}} × {written})", three)
        yield _Found(p - interest, amount.unit, f"{{0}} × (1 − {{1}} × {written})", three)
        yield _Found(p / (1 + r * t), amount.unit, f"{{0}} ÷ (1 + {{1}} × {written})", three)
    n = time.value
    if n == int(n) and 1 < n <= 480:
        growth = (1 + r) ** n
        yield _Found(p * growth, amount.unit, "{0} × (1 + {1})^{2}", three)
        yield _Found(p * (growth - 1), amount.unit, "{0} × ((1 + {1})^{2} − 1)", three)
        yield _Found(p / growth, amount.unit, "{0} ÷ (1 + {1})^{2}", three)
        yield _Found(p * (1 - r) ** n, amount.unit, "{0} × (1 − {1})^{2}", three)


def _annuity(amount: _Term, rate: _Term, time: _Term) -> Iterable[_Found]:
    """Present and future value of an annuity, the payment, and a loan paid monthly."""
    p, r, n, three = amount.value, rate.value, time.value, (amount, rate, time)
    present, future = (1 - (1 + r) ** -n) / r, ((1 + r) ** n - 1) / r
    if not present or not future:
        return
    for factor, written in ((present, "((1 − (1 + {1})^(−{2})) ÷ {1})"), (future, "(((1 + {1})^{2} − 1) ÷ {1})")):
        yield _Found(p * factor, amount.unit, f"{{0}} × {written}", three)
        yield _Found(p / factor, amount.unit, f"{{0}} ÷ {written}", three)
    if time.unit in ("year", "month"):
        i, count = r / 12, n * 12 if time.unit == "year" else n
        factor = (1 - (1 + i) ** -count) / i
        months = "({2} × 12)" if time.unit == "year" else "{2}"
        yield _Found(
            p / factor, amount.unit, f"{{0}} ÷ ((1 − (1 + {{1}} ÷ 12)^(−{months})) ÷ ({{1}} ÷ 12))", three
        )


def _rates(terms: Sequence[_Term], rates: Sequence[_Term]) -> Iterable[_Found]:
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
                yield _Found(a.value + b.value * (c.value - a.value), "1", "{0} + {1} × ({2} − {0})", three)
                yield _Found(a.value + b.value * c.value, "1", "{0} + {1} × {2}", three)


def _returns(amounts: Sequence[_Term], times: Sequence[_Term]) -> Iterable[_Found]:
    """The yearly rate of interest or growth between two amounts."""
    for a in amounts:
        for b in amounts:
            if a is b or not _like(a.unit, b.unit) or a.value <= 0 or b.value <= 0:
                continue
            for time in times:
                three = (a, b, time)
                for t, written in _years(time):
                    yield _Found(a.value / b.value / t, "1", "{0} ÷ {1} ÷ (" + written + ")", three)
                    yield _Found((a.value - b.value) / b.value / t, "1", "({0} − {1}) ÷ {1} ÷ (" + written + ")", three)


def _sums(terms: Sequence[_Term], target: Target) -> Iterable[_Found]:
    """Sums of three or more neighbours of the target's unit, and what the rest leaves of the first."""
    same = tuple(t for t in terms if t.unit == target.unit)
    for start in range(len(same) - 2):
        for end in range(start + 3, len(same) + 1):
            part = same[start:end]
            total = sum(t.value for t in part)
            unit = target.unit
            places = [f"{{{i}}}" for i in range(len(part))]
            yield _Found(total, unit, " + ".join(places), part)
            yield _Found(total / len(part), unit, f"({' + '.join(places)}) ÷ {len(part)}", part)
            for turned in (part, part[-1:] + part[:-1]):
                yield _Found(2 * turned[0].value - total, unit, " − ".join(places), turned)
                yield _Found(total - 2 * turned[-1].value, unit, f"{' + '.join(places[:-1])} − {places[-1]}", turned)


class _Search:
    """The search for one target: counts what was tried, and keeps the first hit that chance does not explain."""

    def __init__(self, target: Target, text: str) -> None:
        self.target = target
        value, half = float(target.value), float(target.step) / 2
        self.low, self.high = value - half * (1 + 1e-9), value + half * (1 + 1e-9)
        self.near = sorted((value / 3, value * 3))
        units = abs(target.value / target.step)
        self.grid = units.numerator
        zeros = 0
        while self.grid % 10 == 0:
            self.grid //= 10
            zeros += 1
        self.coarse = float(target.step) * 10**zeros
        self.rounded = self.grid >= 100 or _ROUNDED.search(text) is not None
        cued = _CUES.search(text) is not None
        self.limit = 2.7 * self.grid * (CHANCE_CUED if cued else CHANCE)
        self.tried: set[float] = set()

    def look(self, found: Iterable[_Found]) -> Relation | None:
        """The relation among these results, all of which are tried first: ties are settled by their order."""
        hits = []
        low, high = self.near
        wanted, coarse, tried = self.target.unit, self.coarse, self.tried
        for one in found:
            value = one.value
            if low <= value <= high and _matches(one.unit, wanted):
                tried.add(round(value / coarse, 3) if abs(value / coarse - round(value / coarse)) < 1e-6 else -value)
                if self.low <= value <= self.high:
                    hits.append(one)
        return self.best(hits, 0)

    def best(self, hits: Sequence[_Found], more: int) -> Relation | None:
        """The first of the hits that exact arithmetic confirms, those without rounding before the others; None
        where chance explains a hit among what was tried and `more` besides.

        A hit without rounding could only come from a result as round as the answer, one with rounding from any.
        """
        if not hits:
            return None
        stated = [relation for one in hits if (relation := self.state(one)) is not None]
        round_ones = sum(value > 0 for value in self.tried)
        if round_ones + more / 2 <= self.limit:
            exact = next((relation for relation in stated if "≈" not in relation.text), None)
            if exact is not None:
                return exact
        return stated[0] if stated and _ROUNDING * (len(self.tried) + more) <= self.limit else None

    def state(self, one: _Found) -> Relation | None:
        """The relation in words of figures, if exact arithmetic confirms it."""
        expression = one.form.format(*(term.text for term in one.terms))
        exact = evaluate(expression)
        if exact is None:
            return None
        gap = abs(exact - self.target.value)
        if 2 * gap > self.target.step or (gap and not self.rounded):
            return None
        return Relation(f"{expression} {'≈' if gap else '='} {_written(self.target.value)}", len(one.terms))

    def two_steps(self, terms: Sequence[_Term]) -> Relation | None:
        """(a ∘ b) ∘ c: for each c, the results of two operands are looked up that would give the target."""
        pairs: dict[str, list[tuple[float, int, _Found]]] = {}
        for i, a in enumerate(terms):
            for b in terms[i + 1 :]:
                for one in _pair(a, b):
                    if one.value > 0 and len(one.form) < 20:
                        pairs.setdefault(one.unit, []).append((one.value, len(pairs), one))
        keys = {}
        for unit, listed in pairs.items():
            listed.sort(key=lambda entry: entry[0])
            keys[unit] = [entry[0] for entry in listed]
        hits: list[_Found] = []
        near = 0
        for c in terms:
            for unit, values in keys.items():
                for form, low, high in self._wanted(_Term(1.0, "", unit), c):
                    first, last = bisect.bisect_left(values, low), bisect.bisect_right(values, high)
                    near += bisect.bisect_right(values, 3 * high) - bisect.bisect_left(values, low / 3)
                    hits += [
                        _Found(0.0, unit, form.replace("{x}", f"({one.form})"), (*one.terms, c))
                        for _, _, one in pairs[unit][first:last]
                        if c not in one.terms
                    ]
        return self.best(hits, near)

    def _wanted(self, x: _Term, c: _Term) -> Iterable[tuple[str, float, float]]:
        """(form, low, high) of the x that give the target with c."""
        v, low, high, wanted = c.value, self.low, self.high, self.target.unit
        if _like(x.unit, c.unit) and _matches(x.unit, wanted):
            yield "{x} + {2}", low - v, high - v
            yield "{x} − {2}", low + v, high + v
            yield "{2} − {x}", v - high, v - low
        if v > 0 and v not in (1, 10, 100):
            unit = _times(x, c)
            if unit is not None and _matches(unit, wanted):
                yield "{x} × {2}", low / v, high / v
            unit = _over(x, c)
            if unit is not None and _matches(unit, wanted):
                yield "{x} ÷ {2}", low * v, high * v
            unit = _over(c, x)
            if unit is not None and _matches(unit, wanted):
                yield "{2} ÷ {x}", v / high, v / low


def _written(value: Fraction) -> str:
    """A fraction as a decimal where it is one."""
    bottom = value.denominator
    places = 0
    while bottom % 10 == 0 or bottom % 5 == 0 or bottom % 2 == 0:
        bottom //= 10 if bottom % 10 == 0 else 5 if bottom % 5 == 0 else 2
        places += 1
    if bottom != 1:
        return str(value)
    text = f"{abs(value) * 10**places}"
    whole = text.zfill(places + 1)
    digits = (whole[:-places] + "." + whole[-places:]).rstrip("0").rstrip(".") if places else whole
    return "-" + digits if value < 0 else digits


def find_relation(
    target: Target, sentence: Sequence[Number], context: Sequence[Number], text: str
) -> Relation | None:
    """The simplest relation by which `target` follows from the numbers of its sentence, or of the context too.

    sentence: the other numbers of the sentence, in order; context: those before it, in order; text: the sentence, in
    which words such as 半年 or 合计 stand.
    """
    if not target.value or not target.step:
        return None
    search = _Search(target, text)
    near = _terms(sentence, _SENTENCE, [])
    wide = _terms(reversed(context), _CONTEXT, near)
    for terms in (near, wide) if len(wide) > len(near) else (near,):
        pairs = [(a, b) for i, a in enumerate(terms) for b in terms[i + 1 :]]
        if found := search.look(one for term in terms for one in _single(term, target, text)):
            return found
        if found := search.look(one for a, b in pairs for one in _pair(a, b)):
            return found
        if len(terms) > 2:
            if found := search.look(_sums(terms, target)):
                return found
            if found := search.look(_finance(terms, target)):
                return found
            if found := search.two_steps(terms):
                return found
    return None
