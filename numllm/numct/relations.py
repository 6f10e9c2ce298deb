"""Whether a number follows from other numbers by arithmetic, and how.

`find_relation` tries typed relations from few operands to many: unit conversions, sums, differences, shares, changes,
percentages of an amount, price × quantity, simple and compound interest, present value, annuities, straight-line
depreciation, perpetuities, weighted means, and two steps of + − × ÷. The units decide what may be combined.

A relation counts only where it is unlikely to be chance. Of `n` results of the right unit and size tried so far,
on a grid as coarse as the answer is round, about n / (2.7 s) would meet an answer whose significant digits are the
whole number s; this must stay under `CHANCE`, or `CHANCE_CUED` where the sentence speaks of a result (合计, 因此, 为).
"""

from __future__ import annotations

import bisect
import functools
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from ..numbers import Number
from .arithmetic import evaluate
from .finance import finance
from .form import significant
from .formulas import Found, Near, Target, Term, like, matches, over, pairs, short, singles, sums, times

__all__ = ["Relation", "Target", "chance_limit", "find_relation", "operand"]

CHANCE = 0.04
CHANCE_CUED = 0.12
_ROUNDING = 2  # a hit by rounding is so many times easier
_SENTENCE, _CONTEXT = 8, 8  # operands of the sentence and of the context at most, the nearest
_CUES = re.compile(
    r"合计|总计|总共|一共|共计?|总额|总和|之和|因此|所以|于是|可知|可见|由此|即|就是|相当于|等于|相差|差额|余下|其余|剩余|剩下|只剩|折合|"
    r"换算|扣除|减去|净|得到|得出|应为|则|变为|升至|增至|降至|升到|降到|增长|下降|上升|高出|多出|少|占|比例为|[=＝≈]"
)
_FEW = 4  # operands whose results are tried before those of all
_VALUE = operator.itemgetter(0)
_ROUNDED = re.compile("约|[≈]|左右|将近|接近")


class Relation(NamedTuple):
    """How a number follows: `text` "1000000 × 0.05 = 50000", `operands` the texts' numbers it uses, (value, unit)."""

    text: str
    operands: frozenset[tuple[float, str]]


def _text(value: str) -> str:
    return f"({value})" if "/" in value or value.startswith("-") else value


def operand(number: Number) -> Term | None:
    """The number as an operand of a relation; None for a range, a date, a label and zero."""
    if number.low is not None or ":" in number.value or len(number.value) > 18:
        return None
    if not (number.variable or (number.kind in ("count", "other") and number.unit != "元组")):
        return None
    top, _, bottom = number.value.partition("/")
    try:
        value = float(top) / float(bottom or 1)
    except ValueError:
        return None
    return Term(value, _text(number.value), number.unit) if value else None


def _terms(numbers: Iterable[Number], limit: int, known: list[Term]) -> list[Term]:
    """Numbers as operands, each value and unit once, after the operands already known."""
    found = list(known)
    seen = {(term.value, term.unit) for term in known}
    for number in numbers:
        term = operand(number)
        if term is None or (term.value, term.unit) in seen:
            continue
        seen.add((term.value, term.unit))
        found.append(term)
        if len(found) == len(known) + limit:
            break
    return found


Stage = Callable[[Near], Iterable[Found]]
"""Results of one kind that lie between two values."""


class _Search:
    """The search for one target: keeps the first hit that chance does not explain. What else was tried is counted
    once there is a hit."""

    def __init__(self, target: Target, limit: float, rounded: bool) -> None:
        """limit: results as round as the target that may have been tried; rounded: whether it may be rounded."""
        self.target, self.limit, self.rounded = target, limit, rounded
        value, step = float(target.value), float(target.step)
        half = step / 2 * (1 + 1e-9)
        self.low, self.high = value - half, value + half
        self.near = min(value / 3, value * 3), max(value / 3, value * 3)
        self.coarse = step * 10 ** significant(target.steps)[1]
        self.tried: set[float] = set()  # in whole steps of the answer's last digit but zeros; others are negative
        self.round_ones = 0  # of them, as round as the answer
        self.uncounted: list[Stage] = []

    def look(self, stage: Stage) -> Relation | None:
        """The relation among these results, all of which count as tried: ties are settled by their order."""
        self.uncounted.append(stage)
        wanted = self.target.unit
        hits = [one for one in stage((self.low, self.high)) if matches(one[1], wanted)]
        if not hits:
            return None
        self.count()
        return self.best(hits, 0)

    def is_chance(self, more: float = 0) -> bool:
        """Whether what was tried explains any hit, and `more` besides."""
        return self.round_ones + more / 2 > self.limit

    def count(self) -> None:
        """Counts what was tried by now, as far as it decides whether hits are chance."""
        wanted, coarse, tried = self.target.unit, self.coarse, self.tried
        for stage in self.uncounted:
            for value, unit, _, _ in stage(self.near):
                if matches(unit, wanted):
                    steps = value / coarse
                    whole = round(steps)
                    number = whole if abs(steps - whole) < 1e-6 else -value
                    if number not in tried:
                        tried.add(number)
                        self.round_ones += number > 0
                        if self.round_ones > self.limit:
                            return
        self.uncounted.clear()

    def best(self, hits: Sequence[Found], more: int) -> Relation | None:
        """The first of the hits that exact arithmetic confirms, those without rounding before the others; None
        where chance explains a hit among what was tried and `more` besides.

        A hit without rounding could only come from a result as round as the answer, one with rounding from any.
        """
        if self.is_chance(more):
            return None
        stated = [relation for one in hits if (relation := self.state(one)) is not None]
        exact = next((relation for relation in stated if "≈" not in relation.text), None)
        if exact is not None:
            return exact
        return stated[0] if stated and _ROUNDING * (len(self.tried) + more) <= self.limit else None

    def state(self, one: Found) -> Relation | None:
        """The relation in words of figures, if exact arithmetic confirms it."""
        _, _, form, terms = one
        expression = form.format(*(term.text for term in terms))
        exact = evaluate(expression)
        if exact is None:
            return None
        gap = abs(exact - self.target.value)
        if 2 * gap > self.target.step or (gap and not self.rounded):
            return None
        stated = f"{expression} {'≈' if gap else '='} {_written(self.target.value)}"
        return Relation(stated, frozenset((term.value, term.unit) for term in terms))

    def two_steps(self, terms: Sequence[Term]) -> Relation | None:
        """(a ∘ b) ∘ c: for each c, the results of two operands are looked up that would give the target.

        First of a few operands, then of more: what a few give is often as much as chance needs to explain any hit.
        """
        count = 0
        while count < len(terms):
            count = min(2 * count or _FEW, len(terms))
            hits, near = self._lookups(terms[:count])
            if self.is_chance(near):
                return None
        if not hits:
            return None
        self.count()
        return self.best(hits, near) if len(self.tried) <= self.limit else None

    def _lookups(self, terms: Sequence[Term]) -> tuple[list[Found], int]:
        """What two steps give that is the target, and how many results are of its size."""
        results: dict[str, list[Found]] = {}
        for a, b in itertools.combinations(terms, 2):
            for one in short(a, b):
                results.setdefault(one[1], []).append(one)
        for listed in results.values():
            listed.sort(key=_VALUE)
        values = {unit: [one[0] for one in listed] for unit, listed in results.items()}
        hits: list[Found] = []
        near = 0
        for c in terms:
            for unit, known in values.items():
                for form, low, high in self._wanted(unit, c):
                    near += bisect.bisect_right(known, 3 * high) - bisect.bisect_left(known, low / 3)
                    first, last = bisect.bisect_left(known, low), bisect.bisect_right(known, high)
                    hits += [
                        (0.0, unit, form.replace("{x}", f"({inner})"), (*used, c))
                        for _, _, inner, used in results[unit][first:last]
                        if c not in used
                    ]
        return hits, near

    def _wanted(self, x: str, c: Term) -> Iterable[tuple[str, float, float]]:
        """(form, low, high) of what gives the target with c, for results of the unit `x`."""
        v, low, high = c.value, self.low, self.high
        added, multiplied, divided, divides = _second_steps(x, c.unit, self.target.unit)
        if added:
            yield "{x} + {2}", low - v, high - v
            yield "{x} − {2}", low + v, high + v
            yield "{2} − {x}", v - high, v - low
        if v > 0 and v not in (1, 10, 100):
            if multiplied:
                yield "{x} × {2}", low / v, high / v
            if divided:
                yield "{x} ÷ {2}", low * v, high * v
            if divides:
                yield "{2} ÷ {x}", v / high, v / low


@functools.lru_cache(1024)
def _second_steps(x: str, c: str, wanted: str) -> tuple[bool, bool, bool, bool]:
    """Whether sums, products, x ÷ c and c ÷ x of the units x and c give the unit `wanted`."""
    multiplied, divided, divides = (
        unit is not None and matches(unit, wanted) for unit in (times(x, c), over(x, c), over(c, x))
    )
    return like(x, c) and matches(x, wanted), multiplied, divided, divides


@functools.lru_cache(64)
def _says(words: re.Pattern[str], sentence: str) -> bool:
    return words.search(sentence) is not None


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


def chance_limit(steps: int, text: str) -> float:
    """How many results as round as the answer, the whole number `steps` in its form, may be tried before a hit is
    chance; below one, nothing can be found. text: the sentence."""
    if not steps:
        return 0.0
    grid, _ = significant(steps)
    limit = 2.7 * grid * CHANCE_CUED
    return limit if limit < 1 or _says(_CUES, text) else 2.7 * grid * CHANCE


def find_relation(
    target: Target, sentence: Sequence[Number], context: Sequence[Number], text: str, most: int = _CONTEXT
) -> Relation | None:
    """The simplest relation by which `target` follows from the numbers of its sentence, or of the context too.

    sentence: the other numbers of the sentence, in order; context: those before it, in order; text: the sentence, in
    which words such as 半年 or 合计 stand; most: operands of the context at most, the nearest.
    """
    limit = chance_limit(target.steps, text)
    if not target.step or limit < 1:
        return None
    search = _Search(target, limit, significant(target.steps)[0] >= 100 or _says(_ROUNDED, text))
    near = _terms(sentence, _SENTENCE, [])
    wide = _terms(reversed(context), most, near)
    for terms in (near, wide) if len(wide) > len(near) else (near,):
        stages: list[Stage] = [
            functools.partial(singles, terms, target, text),
            functools.partial(pairs, terms, target.unit),
        ]
        if len(terms) > 2:
            stages += [functools.partial(sums, terms, target), functools.partial(finance, terms, target)]
        for stage in stages:
            if found := search.look(stage):
                return found
            if search.is_chance():
                return None
        if len(terms) > 2 and (found := search.two_steps(terms)):
            return found
    return None
