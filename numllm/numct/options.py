"""Wrong options: numbers of the document and the corpus, results of mistakes, and numbers like the answer."""

from __future__ import annotations

import bisect
import functools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from ..numbers import Number, find_numbers
from .arithmetic import evaluate
from .form import UNIT8, Form, significant, units8
from .limits import SPREAD, Limits
from .mistakes import mistakes

__all__ = ["SHOWN", "Asked", "draw", "model_options", "natural_options"]

SHOWN = "0123456789零一二三四五六七八九十百千万亿两"
"""Digits that an option shows."""

_NATURAL = (0, 2, 2, 3, 3, 3, 3)  # wrong options that are numbers of the document or the corpus, as often as listed
_RARITY = {digit: place for place, digit in enumerate("1235684790")}  # first digits, the most frequent first
_REAL = 0.85  # of perturbed numbers are chosen for being as frequent as can be
_MISTAKES = 4  # times a mistaken result stands among the numbers to draw from
_DIGITS = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?|[零一二三四五六七八九十百千万亿两]+")
_PARTS = (2, 3, 3, 4, 4, 5, 6, 8, 10)  # denominators of fractions, as often as listed
_STEPS = (1, 1, 1, 2, 2, 3, -1, -1, -1, -2, -2, -3)
_PERTURBED = 24  # perturbations of a number that are looked at
_NEIGHBOURS = 6  # of them that may be its neighbours in one question
_KEPT = 1 << 15  # numbers whose perturbations and figures are kept
_STRETCH = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 2.0)


def _perturb(m: int, style: str, percent: bool, decimals: int, rng: random.Random) -> int:
    """A number that `m` may be mistaken for, as round as `m`: a digit stepped or two exchanged, a scale of ten,
    a stretch by 10 to 50 %, the complement of a percentage. 0 when the draw gives none."""
    draw = rng.random()
    if style == "f":
        n = _PARTS[int(draw * len(_PARTS))]
        top = 1 + int(rng.random() * (n - 1))
        return top * 1000 + n if math.gcd(top, n) == 1 else 0
    s, z = significant(m)
    digits = str(s)
    count = len(digits)
    if draw < 0.12:
        if not z and count > 1:
            return 0
        return m * 10 if draw < 0.06 else (m // 10 if z else 0)
    if draw < 0.2 and percent:
        whole = 100 * 10**decimals
        return whole - m if m < whole and significant(whole - m)[1] == z else 0
    if count > 1 and draw < 0.35:
        i = int(rng.random() * count)
        j = int(rng.random() * count)
        swapped = list(digits)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        if swapped[0] == "0" or swapped[-1] == "0" or swapped[i] == swapped[j]:
            return 0
        return int("".join(swapped)) * 10**z
    if count > 1 and draw < 0.62:
        stretched = round(s * _STRETCH[int(rng.random() * len(_STRETCH))])
        if stretched % 10 == 0 or (s % 5 == 0) != (stretched % 5 == 0) or abs(len(str(stretched)) - count) > 1:
            return 0
        return stretched * 10**z
    # step one digit; a last 5 stays, so that 2.5 meets 3.5 rather than 2.6
    places = count - 1 if count > 1 and digits[-1] == "5" else count
    i = 0 if rng.random() < 0.4 else int(rng.random() * places)
    digit = int(digits[i]) + _STEPS[int(rng.random() * len(_STEPS))]
    last = i == count - 1
    if not 0 <= digit <= 9 or (digit == 0 and (i == 0 or last)) or (digit == 5 and last and count > 1):
        return 0
    return int(f"{digits[:i]}{digit}{digits[i + 1 :]}") * 10**z


@functools.lru_cache(_KEPT)
def _mistakable(m: int, form: tuple[str, bool, int]) -> tuple[int, ...]:
    """Numbers that `m` may be mistaken for, those that `_perturb` gives more often rather than others; form: style,
    whether it is a percentage, decimals. Kept, since the same numbers are asked about and chosen again and again."""
    rng = random.Random(m)
    found: dict[int, None] = {}
    for _ in range(_PERTURBED):
        if other := _perturb(m, *form, rng):
            found[other] = None
    found.pop(m, None)
    return tuple(found)


@functools.lru_cache(_KEPT)
def _figure(m: int) -> tuple[int, int, int]:
    """Digits before trailing zeros, digits, trailing zeros of a number."""
    s, z = significant(m)
    digits = len(str(s))
    return digits, digits + z, z


@functools.lru_cache(_KEPT)
def _face(m: int) -> tuple[str, int, tuple[int, ...]]:
    """Of a number its digits; a number that those of the same digits share; and how many digits there are before
    trailing zeros, the first, its rarity, whether the last of them is 5, is even, whether one comes twice."""
    plain = str(m)
    digits = plain.rstrip("0")
    first, last = plain[0], digits[-1]
    bag = int("".join(sorted(plain, reverse=True)))
    twice = len(set(digits)) < len(digits)
    return plain, bag, (len(digits), int(first), _RARITY[first], last == "5", last in "2468", twice)


@dataclass(slots=True)
class Asked:
    """A number that can be asked, with what its wrong options are judged by."""

    form: Form
    m: int
    kind: str
    unit: str
    limits: Limits
    near: list[float]  # sorted logarithms of the sizes of the numbers in question and context
    frequency: Mapping[int, int]  # how often values of its unit, in 1e-8, stand in the texts
    shown: Mapping[int, int]  # and in the questions
    answers: Counter[int]
    digits: str  # that stand in question or context
    several: bool = field(init=False)  # whether the answer is of several digits
    size: tuple[int, int, int] = field(init=False)  # digits before trailing zeros, digits, trailing zeros of m
    near_to: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)
    """Perturbed numbers, and those of them that stand in the texts, the most frequent first, by what they were made
    from."""

    def __post_init__(self) -> None:
        self.size = _figure(self.m)
        self.several = self.m > 9 if self.form.style != "f" else self.m > 9999

    def look(self, m: int) -> tuple[tuple[float, ...], str]:
        """What can be seen of an option by itself, as numbers, and its digits: value, length, frequencies in the texts
        and questions, and among earlier answers, the logarithm of the first, distance to the nearest number of the
        text, share of digits that stand in the text, a number that options of the same digits share; significant
        digits, first digit, its rarity, whether the last digit is 5, is even, a digit comes twice."""
        form, near = self.form, self.near
        style, scale = form.style, form.scale
        if style == "f":
            value, count = form.value(m), 0
            plain, bag, (_, *face) = _face(m // 1000)
            face = (1, *face)
        else:
            value, count = m * scale / UNIT8, self.frequency.get(m * scale, 0) + self.shown.get(m * scale, 0)
            plain, bag, face = _face(m)
        distance = 0.0
        if near:
            size = math.log(value)
            at = bisect.bisect(near, size)
            distance = abs(size - near[at - 1])
            if at < len(near) and (above := abs(size - near[at])) < distance:
                distance = above
        shown: Sequence[str] = plain if style == "a" else [c for c in form.render(m) if c in SHOWN]
        length = len(shown)
        return (
            value,
            length,
            count,
            self.answers.get(m, 0),
            math.log1p(count),
            distance,
            sum(map(self.digits.__contains__, shown)) / (length or 1),
            bag if self.several else int(plain),
            *face,
        ), plain

    def allowed(self, m: int) -> bool:
        """Whether `m` may be a wrong option: written like the answer, no value of the text, no impossible rate."""
        form = self.form
        if form.style == "f":
            return m > 0 and form.value(m) != form.value(self.m)
        least, most, barred = self.limits
        return least <= m <= most and m not in barred

    def like(self, m: int) -> bool:
        """Whether `m`, above zero, is as round as the answer and of about its length: neither stands out when written
        alike."""
        count, length, zeros = _figure(m)
        own_count, own_length, own_zeros = self.size
        decimals = self.form.decimals
        return (
            -1 <= count - own_count <= 1
            and -2 <= length - own_length <= 2
            and (zeros == own_zeros or (zeros >= decimals and own_zeros >= decimals))
        )

    def even(self, wrong: Iterable[int]) -> bool:
        """Whether any two options are of about one size and length: were each only near the answer, it would be the
        one in the middle of all."""
        if self.form.style == "f":
            return True
        low, high = min(self.m, *wrong), max(self.m, *wrong)
        return high < 10 * low or (high < SPREAD * low and len(str(high)) - len(str(low)) <= 1)

    def neighbour(self, base: int, chosen: dict[int, str], rng: random.Random) -> int:
        """Adds to `chosen` a number that `base` may be mistaken for and returns it, or 0 when there is none left."""
        known, real = self.near_to.get(base) or self._neighbours(base, rng)
        free = [m for m in known if m not in chosen]
        if not free:
            return 0
        # a real number goes on to occur in the texts; so do most of these
        m = next((m for m in real if m not in chosen), 0) if rng.random() < _REAL else 0
        if not m:
            m = free[int(rng.random() * len(free))]
        chosen[m] = "perturbed"
        return m

    def _neighbours(self, base: int, rng: random.Random) -> tuple[list[int], list[int]]:
        """What `near_to` gives for a number."""
        form = self.form
        others = _mistakable(base, (form.style, form.percent, form.decimals))
        first = int(rng.random() * len(others))
        known = []
        for m in others[first:] + others[:first]:
            if self.allowed(m):
                known.append(m)
                if len(known) == _NEIGHBOURS:
                    break
        scale, frequency = form.scale, self.frequency
        real = [m for m in known if m * scale in frequency]
        if len(real) > 1:
            real.sort(key=lambda m: frequency[m * scale], reverse=True)
        self.near_to[base] = found = known, real
        return found


def draw(
    asked: Asked, natural: Sequence[tuple[int, str]], wanted: int, rng: random.Random
) -> list[tuple[int, str]] | None:
    """One set of wrong options as (m, tier), or None when too few are to be had.

    Perturbed numbers are made from the answer and from other wrong options alike, in shapes that look the same
    from every option: were all made from the answer, it would be the one that all others resemble.
    """
    random = rng.random
    count = min(wanted, _NATURAL[int(random() * len(_NATURAL))])
    chosen: dict[int, str] = {}
    for _ in range(2 * count if natural else 0):
        m, tier = natural[int(random() * len(natural))]
        if m not in chosen:
            chosen[m] = tier
        if len(chosen) == count:
            break
    missing = wanted - len(chosen)
    if not chosen:
        # a star whose middle is each option equally often
        hub = asked.m if random() < 1 / (wanted + 1) else asked.neighbour(asked.m, chosen, rng)
        for _ in range(wanted - len(chosen)):
            if not hub or not asked.neighbour(hub, chosen, rng):
                return None
    elif missing > len(chosen):
        # pairs: every natural option, the answer among them, gets a neighbour of its own
        bases = [asked.m, *chosen]
        for i in range(missing):
            if not asked.neighbour(bases[i % len(bases)], chosen, rng):
                return None
    elif missing:
        # one neighbour, of any real number equally often: the pair tells nothing about which of them is the answer
        for i in range(missing):
            own = i == 0 and random() < 1 / (len(chosen) + 1)
            if not asked.neighbour(asked.m if own else rng.choice(list(chosen)), chosen, rng):
                return None
    return list(chosen.items()) if asked.even(chosen) else None


def natural_options(
    asked: Asked, document: Sequence[int], corpus: Sequence[int], relation: str | None, rng: random.Random
) -> list[tuple[int, str]]:
    """Wrong options of the same unit, kind and form that are not made from digits, as (m, tier): values that stand
    elsewhere in the document, answers of earlier questions, both drawn as often as they occur, and what `relation`
    gives when worked out with a mistake."""
    form = asked.form
    found: list[tuple[int, str]] = []
    if form.style != "f":
        for value in document if len(document) <= 12 else rng.sample(document, 12):
            m, rest = divmod(value, form.scale)
            if not rest and asked.allowed(m) and asked.like(m):
                found.append((m, "document"))
    for m in corpus if len(corpus) <= 16 else rng.sample(corpus, 16):
        if asked.allowed(m) and asked.like(m):
            found.append((m, "corpus"))
    if relation is not None:
        slips = _mistaken(asked.m, asked.form.scale, asked.form.decimals, relation)
        likely = [m for m in slips if asked.allowed(m) and asked.like(m)]
        found += [(m, "mistake") for m in likely for _ in range(_MISTAKES)]
    return found


def model_options(asked: Asked, left: str, right: str, texts: Sequence[str]) -> list[tuple[int, str]]:
    """The numbers that a model's continuations of `left` begin with, where they may be wrong options, as often as the
    model gave them, as (m, "model"). right: what follows the blank, for a unit that stands there."""
    form = asked.form
    head = left[-16:]
    found: list[tuple[int, str]] = []
    for text, count in Counter(texts).items() if form.style != "f" else ():
        number = _number_after(head, text)
        if number is not None and not number.unit:  # the unit stands behind the blank
            number = _number_after(head, f"{_leading(text)}{form.suffix}{right[:12]}")
        if number is None or (number.kind, number.unit) != (asked.kind, asked.unit):
            continue
        m, rest = divmod(units8(number.value) or 1, form.scale)
        if not rest and asked.allowed(m) and asked.like(m):
            found += [(m, "model")] * count
    return found


def _number_after(head: str, text: str) -> Number | None:
    """The number that begins where `text` does, read after `head`; None for another beginning, and for a range."""
    found = find_numbers(head + text)
    number = next((n for n in found if n.end > len(head)), None)
    return number if number is not None and number.start <= len(head) and number.low is None else None


def _leading(text: str) -> str:
    """The digits that a text begins with, with their separators."""
    match = _DIGITS.match(text)
    return match.group() if match is not None else ""


@functools.lru_cache(_KEPT)
def _mistaken(m: int, scale: int, decimals: int, relation: str) -> tuple[int, ...]:
    """What the relation gives with a mistake, in the form of the answer `m`; none where its left side is not the
    answer."""
    right = evaluate(re.split("[=≈]", relation)[0])
    for step in (Fraction(scale, UNIT8), Fraction(1, 10**decimals), Fraction(1, 10 ** (decimals + 2))):
        if right and step and round(right / step) == m:
            return tuple(round(value / step) for value in mistakes(relation))
    return ()
