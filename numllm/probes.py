"""Numeric probes: questions made from seeds, with exact answers, that tell what a model can do with numbers.

Each kind asks one skill at three levels; every wrong option is the result of one mistake people make (a unit off by
ten, a percentage taken for percentage points, simple for compound interest), written as the right one is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from .numbers import decimal_string

LEVELS = (1, 2, 3)
OPTIONS = 4
_TRIES = 500

Form = Callable[[Fraction], str]
Case = tuple[str, Fraction, Sequence[Fraction], Form]
"""(question with one blank, right value, mistakes with the likeliest first, how a value is written)."""


def show(value: Fraction, places: int | None = None) -> str:
    """A decimal with thousands separators: 12500 → "12,500"; places: digits behind the point, else as many as needed.

    ValueError when no finite decimal of that many places exists.
    """
    digits = 0
    while places is None and (value * 10**digits).denominator != 1:
        digits += 1
        if digits > 8:
            raise ValueError(f"{value} has no short decimal")
    digits = places if places is not None else digits
    whole = value * 10**digits
    if whole.denominator != 1:
        raise ValueError(f"{value} has more than {digits} decimals")
    text = decimal_string(str(abs(whole.numerator)), -digits)
    head, point, tail = text.partition(".")
    if places:
        point, tail = ".", tail.ljust(places, "0")
    return f"{'-' if value < 0 else ''}{int(head):,}{point}{tail}"


def _rounded(value: Fraction, places: int) -> Fraction:
    """Rounded half up."""
    return Fraction(int(abs(value) * 10**places + Fraction(1, 2)), 10**places) * (1 if value >= 0 else -1)


def _like(right: Fraction, after: str = "") -> Form:
    """Writes values with as many decimals as the right one needs."""
    places = len(show(right).partition(".")[2])
    return lambda value: show(_rounded(value, places), places) + after


def _cents(value: Fraction) -> str:
    return show(_rounded(value, 2), 2)


def _compare(rng: random.Random, level: int) -> Case:
    """The largest of four amounts: in one unit, in several, and close to each other in several."""
    units = {"元": 1, "千元": 10**3, "万元": 10**4, "百万元": 10**6, "亿元": 10**8}
    chosen = ["万元"] * OPTIONS if level == 1 else rng.sample(list(units), OPTIONS)
    if level == 3:
        middle = rng.randrange(2000, 9000) * 10**4
        values = [middle + 10**4 * step for step in rng.sample(range(-40, 120), OPTIONS)]
    else:
        values = [rng.randrange(100, 9999) * 10 ** rng.choice((4, 5)) for _ in range(OPTIONS)]
    if len(set(values)) < OPTIONS:
        raise ValueError("two amounts are equal")
    unit = {Fraction(value): name for value, name in zip(values, chosen, strict=True)}
    right, *wrong = sorted(unit, reverse=True)
    return "下列金额中，最大的是____。", right, wrong, lambda value: show(value / units[unit[value]]) + unit[value]


def _convert(rng: random.Random, level: int) -> Case:
    """An amount in another unit; mistakes are off by powers of ten."""
    pairs = {1: [("万元", "元", 4), ("亿元", "万元", 4)], 2: [("元", "万元", -4), ("万元", "亿元", -4)],
             3: [("百万元", "亿元", -2), ("千元", "万元", -1), ("亿元", "百万元", 2), ("百万元", "万元", 2)]}
    source, target, shift = rng.choice(pairs[level])
    value = Fraction(rng.randrange(11, 9999), rng.choice((1, 10, 100)) if shift > 0 else 1)
    right = value * Fraction(10) ** shift
    wrong = [right * Fraction(10) ** off for off in (-1, 1, -2, 2, -3, 3)]
    return f"{show(value)}{source}等于____{target}。", right, wrong, show


def _points(rng: random.Random, level: int) -> Case:
    """A rate raised or lowered by percentage points, by basis points, or by a percentage of itself."""
    rate = Fraction(rng.randrange(20, 80), 10)
    sign, verb = rng.choice(((1, "上升"), (-1, "下降")))
    if level == 1:
        step = Fraction(rng.randrange(2, 15), 10)
        right, change = rate + sign * step, f"{show(step)}个百分点"
        wrong = [rate * (1 + sign * step / 100), rate - sign * step, rate + sign * step / 10, rate + sign * 2 * step,
                 step]
    elif level == 2:
        step = Fraction(rng.randrange(1, 20), 20)
        right, change = rate + sign * step, f"{show(100 * step)}个基点"
        wrong = [rate + sign * step * 10, rate + sign * step / 10, rate - sign * step, rate * (1 + sign * step)]
    else:
        share = rng.choice((5, 10, 20, 25, 50))
        right, change = rate * (1 + sign * Fraction(share, 100)), f"了原来的{share}%"
        wrong = [rate + sign * Fraction(share, 100), rate + sign * Fraction(share, 10),
                 rate * (1 - sign * Fraction(share, 100)), rate + share]
    return f"某贷款利率原为{show(rate)}%，{verb}{change}，现为____。", right, wrong, _like(right, "%")


def _growth(rng: random.Random, level: int) -> Case:
    """A growth rate from two values, the value before from the one after, the rate over two years.

    The figures are not round ones, so that a taste for round numbers does not find the right option.
    """
    first = Fraction(rng.choice([rate for rate in range(3, 68) if rate % 5]))
    if level == 1:
        before = Fraction(rng.randrange(11, 60) * 100)
        after = before * (1 + first / 100)
        right, wrong = first, [100 * (after - before) / after, 100 + first, first / 10, 100 * before / after, first * 2]
        text = f"营业收入由{show(before)}万元增长到{show(after)}万元，增长率为____%。"
    elif level == 2:
        right = Fraction(rng.choice([value for value in range(1101, 5999) if value % 10]))
        after = right * (1 + first / 100)
        wrong = [after * (1 - first / 100), after * (1 + first / 100), after - right, after - first]
        text = f"本年净利润为{show(after)}万元，比上年增长{show(first)}%，上年净利润为____万元。"
    else:
        first, second = (Fraction(rng.choice([rate for rate in range(31, 399) if rate % 10]), 10) for _ in range(2))
        right = _rounded(((1 + first / 100) * (1 + second / 100) - 1) * 100, 1)
        wrong = [first + second, first * second / 100, (first + second) / 2, 100 + right,
                 first + second + first * second / 10]
        text = f"资产总额第一年增长{show(first)}%，第二年增长{show(second)}%，两年累计增长（保留一位小数）____%。"
        return text, right, wrong, lambda value: show(_rounded(value, 1), 1)
    return text, right, wrong, _like(right)


def _interest(rng: random.Random, level: int, compound: bool) -> Case:
    """Interest over years; level 1: the interest, 2: the sum with the principal, 3: the sum at odd rates."""
    principal = Fraction(rng.randrange(2, 100) * (1 if level < 3 else 5))
    rate = Fraction(rng.choice((2, 3, 4, 5, 6, 8, 10))) if level < 3 else Fraction(rng.choice((25, 35, 45, 55)), 10)
    years = rng.randrange(2, 4)
    simple, power = principal * rate * years / 100, principal * ((1 + rate / 100) ** years - 1)
    interest, other = (power, simple) if compound else (simple, power)
    one = principal * rate / 100
    if level == 1:
        asked, right, wrong = "利息", interest, [other, one, principal + interest, interest + one, interest * 10]
    else:
        asked, right = "本利和", principal + interest
        wrong = [principal + other, principal + one, principal + interest + one, interest, principal + interest * 10]
    way = "按年复利计息" if compound else "按单利计息"
    text = f"本金{show(principal)}万元，年利率{show(rate)}%，{way}，{years}年后{asked}（保留两位小数）为____万元。"
    return text, _rounded(right, 2), wrong, _cents


def _ratio(rng: random.Random, level: int) -> Case:
    """A ratio from a small statement: two lines, four lines, or one that needs a difference first."""
    current, stock = rng.randrange(10, 60) * 20, rng.randrange(1, 9) * 20
    short, fixed, long = rng.randrange(4, 40) * 25, rng.randrange(10, 60) * 20, rng.randrange(1, 20) * 20
    lines = {"流动资产": current, "存货": stock, "固定资产": fixed, "流动负债": short, "长期负债": long}
    shown = {1: ("流动资产", "流动负债"), 2: ("流动资产", "固定资产", "流动负债", "长期负债"), 3: tuple(lines)}[level]
    statement = "，".join(f"{name}{lines[name]:,}万元" for name in shown)
    if level == 1:
        asked, unit, over, under = "流动比率", "", current, short
        wrong = [(short, current), (current + short, short), (current - short, short), (current, current + short)]
    elif level == 2:
        asked, unit, over, under = "资产负债率", "%", 100 * (short + long), current + fixed
        wrong = [(100 * long, under), (100 * short, under), (over, fixed), (over, current), (100 * under, short + long)]
    else:
        asked, unit, over, under = "速动比率", "", current - stock, short
        wrong = [(current, short), (current - stock, short + long), (current + stock, short), (stock, short)]
    text = f"某公司年末{statement}。其{asked}（保留两位小数）为____{unit}。"
    return text, _rounded(Fraction(over, under), 2), [Fraction(*pair) for pair in wrong], _cents


_MAKERS: dict[str, Callable[[random.Random, int], Case]] = {
    "compare": _compare, "convert": _convert, "points": _points, "growth": _growth,
    "simple interest": lambda rng, level: _interest(rng, level, False),
    "compound interest": lambda rng, level: _interest(rng, level, True),
    "ratio": _ratio,
}
KINDS = tuple(_MAKERS)


def build_probes(per_cell: int = 20, *, seed: int = 0, kinds: Sequence[str] = KINDS) -> Iterator[dict[str, Any]]:
    """Rows of question, four options, answer, for each kind and level `per_cell` different ones; numct.jsonl's keys.

    subject is the kind, domain "level 1" to "level 3"; the answers' letters are spread evenly, in an order by the
    seed. The same arguments give the same rows. ValueError for kinds unknown.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown or per_cell < 1:
        raise ValueError(f"wanted per_cell ≥ 1 and kinds among {', '.join(KINDS)}, got {per_cell}, {sorted(unknown)}")
    for kind in kinds:
        for level in LEVELS:
            rng = random.Random(f"{seed} probes {kind} {level}")
            seen: set[str] = set()
            letters: list[int] = []
            ranks: list[int] = []
            for number in range(per_cell):
                letters = letters or rng.sample(range(OPTIONS), OPTIONS)
                ranks = ranks or rng.sample(range(OPTIONS), OPTIONS)
                text, right, wrong = _fresh(kind, level, rng, ranks.pop(), seen)
                place = letters.pop()
                yield {
                    "id": f"{kind}-{level}-{number}", "question": text,
                    "options": [*wrong[:place], right, *wrong[place:]], "answer": "ABCD"[place],
                    "context": "", "subject": kind, "domain": f"level {level}", "source_id": f"seed {seed}",
                }


def _fresh(kind: str, level: int, rng: random.Random, rank: int, seen: set[str]) -> tuple[str, str, list[str]]:
    """A case not seen before: its question, right option, and three wrong ones, `rank` of them smaller.

    So the right value is as often the smallest as the largest, and its size gives nothing away (but in
    "compare", where the largest is asked for).
    """
    for _ in range(_TRIES):
        try:
            text, right, mistakes, form = _MAKERS[kind](rng, level)
            wrong = list(mistakes) if kind == "compare" else _chosen(right, mistakes, rank, form)
            options = [form(value) for value in (right, *wrong)]
        except ValueError:  # a figure without a short decimal, or too few mistakes on one side: another draw
            continue
        key = f"{text}{options[0]}"
        if key not in seen and len(set(options)) == OPTIONS:
            seen.add(key)
            rng.shuffle(wrong := options[1:])
            return text, options[0], wrong
    raise ValueError(f"no more than {len(seen)} different questions of {kind!r}, level {level}; ask for fewer")


def _chosen(right: Fraction, mistakes: Sequence[Fraction], rank: int, form: Form) -> list[Fraction]:
    """Three wrong values above zero, `rank` below the right one, likely mistakes before slips of a digit."""
    slips = [right * Fraction(tenths, 10) for tenths in (9, 11, 8, 12, 5, 15, 1, 100)]
    known = {form(right)}
    below: list[Fraction] = []
    above: list[Fraction] = []
    for value in (*mistakes, *(() if form is show else slips)):
        if value > 0 and form(value) not in known and form(value).strip("0.,%"):
            known.add(form(value))
            (below if value < right else above).append(value)
    if len(below) < rank or len(above) < OPTIONS - 1 - rank:
        raise ValueError("too few wrong values on one side")
    return below[:rank] + above[: OPTIONS - 1 - rank]
