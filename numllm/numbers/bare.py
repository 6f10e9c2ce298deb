"""A numeral in digits without any unit: what the words and signs beside it make of it."""

from __future__ import annotations

import re
from fractions import Fraction

from .captions import unit_before
from .context import cue_before, day_at, label_at, month_at, price_before, with_ordinal_words, with_unit
from .core import Core
from .letters import before_letters
from .measures import Measure, per_at
from .number import Number, make
from .numerals import FOLD
from .units import SPACE, UNITS

__all__ = ["bare_number"]

_TEX_OPERATOR = re.compile(r"\\(?:times|div|cdot|approx|pm|[lg]eq?)(?![a-z])")
_OPERATORS = "×÷+=≈＝＋−*✕"
_MONEY_WORD = re.compile("(?:人民币|港币|美金)\\Z")  # 人民币500万
_LATIN_BEFORE = re.compile("[A-Za-z]")
_STATED = re.compile(r"(?:[^作视认划分称级]为|等于|[升降增减]至|[^到可录]达)\s?\$?\Z")
_DIVIDEND = re.compile("[0-9股][送转增配派]{1,2}\\Z")  # 10送3转2
_SETTLEMENT = re.compile(r"(?<![A-Za-z0-9])[TDN]\s?\+\Z")  # T+0, N+3
_QUOTED_DAY = re.compile(r"(0?[1-9]|1[0-2])\.(3[01]|[12][0-9]|0?[1-9])")  # “9.24”行情
_FLOORS = ("平", "平米", "平方米", "㎡", "m²")  # 3.2万/平 is a price of dwellings
_YEARS = re.compile("(?:[/、](?:19|20)?[0-9]{2}){1,6}年")
_SHORT_YEARS = re.compile(r"[/、]([23][0-9])(?:[/、][23][0-9]){0,5}年\s?(?:P/?[EBS]|EPS|归母|净利|营收|业绩)")
_MINUEND = re.compile(r"(?:[（(]([0-9][0-9,]{0,13}(?:\.[0-9]{1,6})?)|[+×*\[\-][0-9.,]{1,14})-\Z")
_SUBTRAHEND = re.compile(r"-([0-9]{1,12}(?:\.[0-9]{1,9})?)[)）]")


def bare_number(text: str, core: Core, floor: int) -> tuple[Number | None, int]:
    """A numeral in Arabic digits without any unit: decided by what stands around it."""
    start, j = core.start, core.end
    value = core.value()
    left = text[max(0, start - 14) : start]
    n = text[j : j + 1]
    p = left[-1:]
    raw = text[start:j]
    digits = raw.isdigit()
    if n and (n == "日" or (n in SPACE and text[j + 1 : j + 2] == "日")):
        return day_at(text, core)
    if (core.scaled or core.exponent == 0) and n and n in "/／每" and (per := per_at(text, j)) is not None:
        if (core.scaled and per[1] in _FLOORS) or (not core.currency and cue_before(text, start) == "price"):
            return make(text, start, per[0], value, f"{core.currency or 'CNY'}/{per[1]}", "price", True)
    if core.currency:
        if n and n in "/／" and (per := per_at(text, j)) is not None:
            return make(text, start, per[0], value, f"{core.currency}/{per[1]}", "price", True)
        kind, unit = price_before(text, start, core.currency)
        return make(text, start, j, value, unit, kind, True)
    if p and p in "（(" and n and n in "）)" and start > floor:
        if len(raw) > 1 and (unit := unit_before(text, start - 1, text[start - 1 : j + 1])) is not None:
            return with_unit(text, core._replace(start=start - 1, negative=True), Measure(j + 1, unit))
        if digits and len(raw) <= 2 and not _LATIN_BEFORE.match(left[-2:-1]):
            return make(text, *with_ordinal_words(text, start - 1, j + 1), value, "", "ordinal", False)
        year = digits and len(raw) == 4 and "1900" <= raw.translate(FOLD) <= "2099"
        if (len(raw) > 2 and not year) and _negative_entry(text, start - 1, j + 1):
            return make(text, start - 1, j + 1, core._replace(negative=True).value(), "", "amount", True)
        if year:
            return make(text, start, j, value, "", "date", False)
    if not core.scaled and (label := label_at(text, core, left, raw, digits)) is not None:
        return label
    if n and n.isascii() and (n.isalpha() or n == "_"):
        return before_letters(text, core, p, raw)
    if p and p in "“\"" and n and n in "”\"" and (day := _QUOTED_DAY.fullmatch(raw)) is not None:
        return make(text, start, j, f"--{day.group(1):0>2}-{day.group(2):0>2}", "", "date", False)
    if not digits and 6 <= j - start <= 7 and (dated := month_at(text, start, j, left)) is not None:
        return dated
    if (unit := unit_before(text, start, raw)) is not None and not (core.scaled and unit.shift):
        return with_unit(text, core, Measure(j, unit))
    whole = len(text) - (j - start) <= 16 and text.strip() == raw
    after = text[j + 1 : j + 2] if n and n in SPACE else n
    before = left[-2:-1] if p and p in SPACE else p
    operated = (after and after in _OPERATORS) or (before and before in _OPERATORS)
    if n == "\\":
        operated = operated or _TEX_OPERATOR.match(text, j) is not None
    if operated and "*" in (n, p):  # Markdown emphasis, not a product
        operated = False
    difference = n == "-" and p in ("(", "（") and _is_minuend(text, start, j, Fraction(value))
    if p == "-" and n and n in ")）" and (minuend := _MINUEND.search(text, max(0, start - 20), start)) is not None:
        first = minuend.group(1)
        operated = first is None or _is_minuend(text, *minuend.span(1), Fraction(first.replace(",", "")))
    operated = operated or difference
    # part of a sum, not what the word names
    term = difference or (after and after in "×÷+−*＋") or (operated and value in "01")
    if digits and n in ("/", "、") and _is_year(text, j, raw):
        return make(text, start, j, value, "", "date", False)
    cue = None if term else cue_before(text, start)
    if cue == "rate" and text[j - 1] in "万亿":  # 费率：100万以下
        cue = None
    if (core.scaled or "," in raw) and (money := _MONEY_WORD.search(text, max(0, start - 3), start)) is not None:
        return make(text, start, j, value, UNITS[money.group()].name, "amount", True)
    if digits and cue is None and not whole and not core.scaled:
        if raw[0] == "0" and len(raw) > 1:
            return make(text, start, j, raw, "", "identifier", False)
        six = len(raw) == 6 and p and p in "（(" and n and n in "）)."
        if len(raw) >= 8 or six:
            return make(text, start, j, raw.translate(FOLD), "", "identifier", False)
        if len(raw) == 4 and not operated and "1900" <= raw.translate(FOLD) <= "2099":
            return make(text, start, j, value, "", "date", False)
    if cue is not None:
        return make(text, start, j, value, "1" if cue == "rate" else "", cue, True)
    if core.scaled or not digits or core.negative or whole:
        return make(text, start, j, value, "", "other", True)
    stated = (not after or after in "，。；、,;)）$和与") and _STATED.search(text, max(0, start - 3), start) is not None
    operated = operated or stated or (p == "{" and left.endswith(("frac{", "}{")))  # stated: 180天以上为0
    if value == "10" and n and n in "送转派配" and text[j + 1 : j + 2].isdigit():  # 10送3转2
        operated = True
    if p and p in "送转增配派" and _DIVIDEND.search(left) is not None:
        operated = True
    if (p == "满" and n and n in "减返送打") or (p in ("减", "返") and left[-2:-1].isdigit()):  # 满200减30
        operated = True
    if p == "+" and _SETTLEMENT.search(left) is not None:
        operated = False
    return make(text, start, j, value, "", "other", bool(operated) and value != "1")


def _is_minuend(text: str, start: int, end: int, value: Fraction) -> bool:
    """Whether text[start:end] behind a bracket is what something is taken from: (600-160-40), but not (2016-2020)."""
    called = text[start - 2 : start - 1].isascii() and text[start - 2 : start - 1].isalnum()  # f(0-x)
    if called or not text[end + 1 : end + 2].isdecimal() or (text[start] == "0" and text[start + 1 : start + 2] != "."):
        return False
    other = _SUBTRAHEND.match(text, end)
    return other is None or Fraction(other.group(1)) < value


def _is_year(text: str, j: int, raw: str) -> bool:
    """Whether the digits before j are the first of years in a row: 对应2024/2025/2026年, 24/25年PE."""
    if len(raw) == 4:
        return "19" <= raw[:2] <= "20" and _YEARS.match(text, j) is not None
    years = _SHORT_YEARS.match(text, j) if len(raw) == 2 else None
    return years is not None and int(years.group(1)) == int(raw) + 1


def _negative_entry(text: str, start: int, end: int) -> bool:
    """Whether `(1,234.5)` stands alone in a cell or line, the accountant's way to write a negative."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if text[start + 1 : end - 1].isdigit():  # (500) is one only in a cell of a table
        return "|" in text[start - 2 : start] and "|" in text[end : end + 2]
    return (not before or before in " \t|\n\u3000") and (not after or after in " \t|\n\r\u3000")
