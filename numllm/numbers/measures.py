"""Reads the unit behind a numeral, and what may trail it: half a unit, jiao and fen, what a price is for."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from .core import MANY, Core, magnitude_at
from .numerals import DIGITS, D
from .patterns import PER, PER_WORDS
from .units import LONGEST, NOT_BEFORE, SPACE, UNITS, Unit

__all__ = ["Measure", "RATIO_MEASURE", "measure_at", "per_at", "unit_at"]

_CHANGE = re.compile(
    rf"(?:(?P<jiao>[{D}一二三四五六七八九])角(?:(?P<fen>[{D}一二三四五六七八九])分)?|零?(?P<only>[{D}一二三四五六七八九])分)(?!之)"
)
_PERCENT_TEX = re.compile(r"\s?(?:\$\s?\\(?:%|textperthousand)(?:\s?\$)?|\\(?:%|textperthousand))")
_PER_TIME = re.compile("[/／·](?:[天日月年人次期]|小时)(?![0-9])")
_TENTHS = re.compile("[半一二三四五六七八九](?![十百千万个年月天人家股次条项])")
_PIECES = tuple("地土板砖屏表电石玻芯布木煤肉蛋牌冰区田广招")  # what 块 counts
_IN_PIECES = re.compile("(?:[切割分掰断裂]成?|[这那])\\Z")
_FITTING = ("为宜", "为限", "为佳", "为好", "就行", "就够", "就可", "就能", "就好", "分配", "分给")  # 三成为宜
_MULTIPLE = re.compile(  # 25x PE, 25x 2025E PE, PE 25x
    r"[xX](?:(?=(?P<named>(?:的|\s?(?:(?:20)?[0-9]{2}[AEF]?年?)?\s?(?:P/?[EBS]|EV|市[盈净销]率|估值)(?![a-z]))))"
    r"|(?![A-Za-z0-9+\-−=*^_×÷<>≤≥$\\{(]))"
)
_VALUATION = re.compile(
    "(?:P/?[EBS]|EV|EBITDA|估值|市[盈净销]率|倍数|对应)[^。；\\n]{0,14}\\Z|[0-9][xX][/、和至~～-]\\Z"
)


class Measure(NamedTuple):
    """A unit word behind a numeral: where it ends, what it is, what it adds."""

    end: int
    unit: Unit
    add: Fraction | None = None  # 半 or 角分 behind the unit


RATIO_MEASURE = Measure(0, Unit("rate", "1", 0, 3))


def unit_at(text: str, j: int) -> Measure | None:
    """The unit word that begins at j, or one space behind it."""
    c = text[j : j + 1]
    if not c:
        return None
    if c in SPACE:
        j += 1
        c = text[j : j + 1]
    longest = LONGEST.get(c)
    if longest is None:
        if c in "\\$":
            match = _PERCENT_TEX.match(text, j)
            if match is not None:
                return Measure(match.end(), UNITS["%" if "%" in match.group() else "‰"])
        return None
    for size in range(longest, 0, -1):
        word = text[j : j + size]
        unit = UNITS.get(word)
        if unit is None or len(word) < size:
            continue
        end = j + size
        after = text[end : end + 1]
        if after:
            if c.isascii() and after.isascii() and after.isalnum() and c != "%":
                continue
            if after in NOT_BEFORE.get(word, "") and not (word == "成" and text.startswith(_FITTING, end)):
                continue
            if c in "%％" and after.isascii() and after.isalnum() and text[end : end + 2].isalnum():
                if all(digit in "0123456789ABCDEF" for digit in text[end : end + 2]):
                    continue  # %7C in an address
        return Measure(end, unit)
    return None


def measure_at(text: str, core: Core) -> Measure | None:
    """The unit of a numeral with what may trail it: 半, 角分, `/股`, and 多 or 余 before it."""
    j = core.end
    c = text[j : j + 1]
    if c and c in MANY:
        if c == "来" and not core.digits.endswith("0") and not core.exponent:
            return None
        found = unit_at(text, j + 1)
        return None if found is None or found.unit.grade == 0 else _paid(text, core, found)
    if c and c in "xX" and core.style == "a" and (multiple := _MULTIPLE.match(text, j)) is not None:
        valued = _VALUATION.search(text, max(0, core.start - 20), core.start) if not multiple.group("named") else True
        return Measure(j + 1, UNITS["倍"]) if valued else None
    if c and c in "（(" and core.style == "a":
        return _bracketed(text, core)
    if c == "个" and text[j + 1 : j + 2] == "半":
        for word, name in (("月", "month"), ("小时", "hour"), ("星期", "week"), ("季度", "quarter")):
            if text.startswith(word, j + 2):
                return Measure(j + 2 + len(word), Unit("duration", name, 0, 3), Fraction(1, 2))
    found = unit_at(text, j)
    if found is None:
        return None
    unit, end = found.unit, found.end
    if unit.name in ("L", "t") and core.start and text[core.start - 1] in "=+-−–×*·/{($&":  # Q=2L+3K
        return None
    if unit.kind == "amount":
        if unit.name == "CNY" and text[end : end + 1].isnumeric() and text[end - 1] in "元块圆":
            change = _CHANGE.match(text, end)
            if change is not None:
                cents = 0
                for name, worth in (("jiao", 10), ("fen", 1), ("only", 1)):
                    if digit := change.group(name):
                        cents += worth * (DIGITS[digit] if digit in DIGITS else int(digit))
                return Measure(change.end(), unit, Fraction(cents, 100))
        if text[end : end + 1] in "/／每 " and end < len(text) and (per := per_at(text, end)) is not None:
            return Measure(per[0], Unit("price", f"{unit.name}/{per[1]}", unit.shift, 3))
    elif unit.name == "块":
        return _paid(text, core, found)
    elif unit.shift == -1 and text[end - 1] == "成" and _TENTHS.match(text, end) is not None:
        return Measure(end + 1, unit, Fraction(5 if text[end] == "半" else DIGITS[text[end]], 100))  # 六成五, 三成半
    elif unit.kind == "duration" and text[end : end + 1] == "半" and unit.name in ("year", "day", "week"):
        if text[end - 1] in "年天周" and text[end + 1 : end + 2] not in ("年", "天", "周"):
            return Measure(end + 1, unit, Fraction(1, 2))
    return found


def _paid(text: str, core: Core, found: Measure) -> Measure:
    """A unit that was found, 元 where 块 stands for it: 九十块, 三百来块, but 切成8块, 三块地."""
    if found.unit.name != "块" or core.lone or text[found.end : found.end + 1] in _PIECES:
        return found
    if _IN_PIECES.search(text, max(0, core.start - 2), core.start) is not None:
        return found
    return found._replace(unit=UNITS["元"])


def per_at(text: str, j: int) -> tuple[int, str] | None:
    """(end, word) of what a price is for, at j: `/股`, `每吨`, `/kWh`."""
    per = PER.match(text, j)
    if per is None:
        return None
    start, word = per.start(per.lastindex or 0), per.group(per.lastindex or 0)
    sizes = [len(word)] if word.isascii() else range(len(word), 0, -1)
    for size in sizes:
        if word[:size] in PER_WORDS:
            end, name = start + size, word[:size]
            more = _PER_TIME.match(text, end)  # 元/平方米/天, 元/平方米·月
            return (more.end(), name + more.group()) if more is not None else (end, name)
    return None


def _bracketed(text: str, core: Core) -> Measure | None:
    """A unit in brackets behind the number: `6,600（元）`, `12.87（万元）`."""
    end, power = magnitude_at(text, core.end + 1)
    if text[end : end + 1] in ("（", "("):
        return None
    found = measure_at(text, core._replace(end=end))
    if found is None or found.add is not None or found.unit.grade < 2:
        return None
    if text[found.end : found.end + 1] not in ("）", ")"):
        return None
    return Measure(found.end + 1, found.unit._replace(shift=found.unit.shift + power))
