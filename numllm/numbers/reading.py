"""Reads one numeral and its unit, each at a place where it begins."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from .numerals import DIGITS, FOLD, D, chinese_to_int, decimal_string, exact_decimal
from .patterns import ARABIC, CN_RUN, PER, PER_WORDS
from .units import CODES, LONGEST, MAGNITUDES, NOT_BEFORE, NOT_MAGNITUDE, SIGNS, SPACE, UNITS, Unit

__all__ = ["Core", "Measure", "RATIO_MEASURE", "arabic_at", "chinese_at", "magnitude_at", "measure_at", "per_at"]

_WIDE_COMMA = re.compile(r"(?:，[0-9]{3}){0,4}，000(?![0-9，,.])|(?:，[0-9]{3}){1,4}\.[0-9]{2}(?![0-9])")
_SPACED = re.compile(r"[0-9]{1,3}(?:[ \u00a0\u2009\u202f][0-9]{3})+(?![0-9])(?:\.[0-9]+)?")
_CHANGE = re.compile(
    rf"(?:(?P<jiao>[{D}一二三四五六七八九])角(?:(?P<fen>[{D}一二三四五六七八九])分)?|零?(?P<only>[{D}一二三四五六七八九])分)(?!之)"
)
_CN_FRACTION = re.compile("点([零〇○一二三四五六七八九]{1,32})(百万|千万|百亿|千亿|万亿|[万亿])?")
_MIXED = re.compile(r"([0-9]+(?:\.[0-9]+)?)([十百千]?[万亿]|[百千])")
_SHORT_TENTH = re.compile(r"([0-9]{1,4})万([1-9])(?=[。，；、！？)）]|\Z)")
_PERCENT_TEX = re.compile(r"\s?(?:\$\s?\\(?:%|textperthousand)(?:\s?\$)?|\\(?:%|textperthousand))")
_LATIN_BEFORE = re.compile("[A-Za-z/]")  # EUR/USD 1.0850 is a rate of exchange
_ENGLISH = re.compile(  # US$1.2 billion, $300M
    r"(?:(K|\s?(?:k|thousand))|(MM?|\s?(?:mn?|mm|million))|(B|\s?(?:bn?|billion))|(T|\s?(?:tn|trillion)))(?![A-Za-z])"
)
_POWER = re.compile(  # 1.5×10^6, 6.02×10²³, 1.2\\times10^{5}
    r"\s?(?:[×✕*]|\\times)\s?10(?:\^\{?\s?(?P<plain>[-−]?[0-9]{1,3})(?![0-9.])\s?\}?|(?P<raised>⁻?[⁰¹²³⁴-⁹]{1,3}))"
)
_PER_TIME = re.compile("[/／·](?:[天日月年人次期]|小时)(?![0-9])")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_HUNDRED_MILLIONS = re.compile("个[多余]?亿")  # 1.5个亿
_MANY = "多余来"
_TENTHS = re.compile("[半一二三四五六七八九](?![十百千万个年月天人家股次条项])")


class Core(NamedTuple):
    """A numeral without its unit: digits x 10**exponent, or an exact fraction."""

    start: int  # with a currency sign and minus
    end: int
    digits: str
    exponent: int
    negative: bool
    style: str  # "a" Arabic, "c" Chinese
    lone: bool  # one Chinese character
    scaled: bool  # a magnitude (万) or 分之 was read
    currency: str
    fraction: Fraction | None = None

    def value(self, shift: int = 0) -> str:
        if self.fraction is not None:
            return exact_decimal(self.fraction * Fraction(10) ** shift)
        return decimal_string(self.digits, self.exponent + shift, self.negative)


class Measure(NamedTuple):
    """A unit word behind a numeral: where it ends, what it is, what it adds."""

    end: int
    unit: Unit
    add: Fraction | None = None  # 半 or 角分 behind the unit


RATIO_MEASURE = Measure(0, Unit("rate", "1", 0, 3))


def magnitude_at(text: str, j: int) -> tuple[int, int]:
    """(end, power of ten) of the magnitude at j; (j, 0) when there is none."""
    k = j + 1 if text[j : j + 1] in SPACE and j < len(text) else j
    two = text[k : k + 2]
    if not two or two[0] not in "十百千万亿":
        return j, 0
    for word in (two, two[0]):
        power = MAGNITUDES.get(word)
        if power is not None:
            end = k + len(word)
            after = text[end : end + 1]
            if after and after in NOT_MAGNITUDE[word[-1]]:
                continue
            return end, power
    return j, 0


_LEADS = frozenset("-−－﹣–负 \u00a0").union((sign[-1] for sign in SIGNS), (code[-1] for code in CODES))


def _before(text: str, i: int, floor: int) -> tuple[int, bool, str]:
    """(start, negative, currency): the minus and the currency sign that stand directly before i."""
    start, negative, currency = i, False, ""
    for _ in range(2):
        p = text[start - 1] if start > floor else ""
        if not p:
            break
        if p in "-−－﹣–" and not negative:
            q = text[start - 2] if start > 1 else ""
            r = text[start - 3] if start > 2 and q in " \t" else q
            closed = r.isascii() and (r.isalnum() or r in ")]}%'\"")
            if (r and (closed or r in "０１２３４５６７８９％）］元年月日股-—–−×")) or start - 1 < floor:
                break
            start, negative = start - 1, True
        elif p == "负" and not negative and text[start - 2 : start - 1] not in ("正", "自", "抱", "胜", "税"):
            start, negative = start - 1, True
        elif not currency:
            k = start - 1 if p in " \u00a0" else start
            c = text[k - 1 : k]
            if c in SIGNS:
                begin = k - 1
                for size in (3, 2):
                    if k - size >= floor and text[k - size : k] in SIGNS:
                        begin = k - size
                        break
                if c == "$" and begin == k - 1 and _is_math(text, k):
                    break
                currency = SIGNS[text[begin:k]]
                if begin > floor and c == "$" and text[begin - 1] == "\\":
                    begin -= 1
                start = begin
            elif k - 3 >= floor and text[k - 3 : k] in CODES and not _LATIN_BEFORE.match(text[max(0, k - 4) : k - 3]):
                start, currency = k - 3, UNITS[text[k - 3 : k]].name
            else:
                break
        else:
            break
    return start, negative, currency


def _is_math(text: str, k: int) -> bool:
    """Whether the `$` that ends at k opens or closes LaTeX mathematics rather than naming dollars."""
    if text[k - 2 : k - 1] == "\\" and k >= 2:
        return False
    close = text.find("$", k, k + 80)
    if close < 0:
        return False
    inside = text[k:close]
    if "\n" in inside or text[close + 1 : close + 2].isdecimal():
        return False
    # `$5 至 $7` has words between; mathematics has none
    return not any("\u4e00" <= c <= "\u9fff" or c in "，。；、" for c in inside)


def arabic_at(text: str, i: int, floor: int) -> Core:
    """The Arabic numeral that begins at i, with its separators and sign; nothing before `floor` is taken."""
    match = ARABIC.match(text, i)
    assert match is not None
    j = match.end()
    raw = match.group()
    spaced = None
    if j < len(text) and text[j] in " \u00a0\u2009\u202f" and len(raw) <= 3 and text[j + 1 : j + 4].isdecimal():
        spaced = _SPACED.match(text, i)
        if spaced is not None and (
            len(raw) < 3 or " 000" in spaced.group() or _unit(text, magnitude_at(text, spaced.end())[0])
        ):
            j, raw = spaced.end(), spaced.group()
        else:
            spaced = None
    if not raw.isascii():
        raw = raw.translate(FOLD)
    exponent = 0
    digits = raw
    if not raw.isdigit():
        for e in "eE":
            if e in raw:
                digits, _, tail = raw.partition(e)
                exponent = int(tail.replace("−", "-"))
        if "," in raw:
            digits = digits.replace("{,}", "").replace(",", "")
        elif spaced is not None:
            digits = "".join(digits.split())
        whole, _, rest = digits.partition(".")
        digits, exponent = whole + rest, exponent - len(rest)
    start, negative, currency = i, False, ""
    if i > floor and text[i - 1] in _LEADS:
        start, negative, currency = _before(text, i, floor)
    scaled = False
    c = text[j : j + 1]
    if c == "，" and exponent == 0 and j - i <= 3 and (groups := _WIDE_COMMA.match(text, j)) is not None:  # 1，000元
        whole, _, rest = groups.group().replace("，", "").partition(".")
        j, digits, exponent = groups.end(), digits + whole + rest, -len(rest)
        c = text[j : j + 1]
    if c and (c in "十百千万亿" or c in SPACE):
        end, power = magnitude_at(text, j)
        if power:
            total = _mixed(text, i, end)
            if total is not None:
                j, value = total
                digits, exponent = _split(value)
            else:
                j, exponent = end, exponent + power
            scaled = True
    elif c == "个" and (hundreds := _HUNDRED_MILLIONS.match(text, j)) is not None:
        j, exponent, scaled = hundreds.end(), exponent + 8, True
    elif c and c in _MANY and (many := magnitude_at(text, j + 1))[1]:  # 3000多万
        j, exponent, scaled = many[0], exponent + many[1], True
    if not scaled and c and c in "×✕*\\ " and (power := _POWER.match(text, j)) is not None:
        raised = power.group("plain") or power.group("raised").translate(_RAISED)
        j, exponent, scaled = power.end(), exponent + int(raised.replace("−", "-")), True
    if currency and not scaled and c and c in "kKmMbBtT " and (english := _ENGLISH.match(text, j)) is not None:
        j, exponent, scaled = english.end(), exponent + 3 * (english.lastindex or 0), True
    return Core(start, j, digits, exponent, negative, "a", False, scaled, currency)


def _split(value: Fraction) -> tuple[str, int]:
    """(digits, exponent) of a non-negative finite decimal."""
    whole, _, rest = exact_decimal(value).partition(".")
    return whole + rest, -len(rest)


def _mixed(text: str, i: int, end: int) -> tuple[int, Fraction] | None:
    """(end, value) of `1万2千`, `2亿3千5百万`, `3万5`; None when no further group follows the first magnitude."""
    c = text[end : end + 1]
    if c and c in DIGITS and (run := CN_RUN.match(text, end)) is not None:  # 3万五千
        head, rest = _MIXED.fullmatch(text, i, end), chinese_to_int(run.group())
        if head is None or rest is None or run.group()[-1] not in "百千万" or len(head.group(1)) > 20:
            return None
        power = 10 ** MAGNITUDES[head.group(2)]
        return (run.end(), Fraction(head.group(1)) * power + rest) if rest < power else None
    if not c.isdecimal() or not c.isascii():
        return None
    if (short := _SHORT_TENTH.match(text, i)) is not None and short.end() == end + 1:
        return end + 1, Fraction(10 * int(short.group(1)) + int(short.group(2))) * 1000
    total, last, k = Fraction(0), 10**13, i
    for _ in range(6):
        group = _MIXED.match(text, k)
        if group is None or len(group.group(1)) > 20:
            break
        power = 10 ** MAGNITUDES[group.group(2)]
        if power >= last:
            break
        total, last, k = total + Fraction(group.group(1)) * power, power, group.end()
    return (k, total) if k > end else None


def chinese_at(text: str, i: int, floor: int) -> Core | None:
    """The Chinese numeral at i, with 分之 and 点; None when the run of numerals is not a number."""
    run = CN_RUN.match(text, i)
    if run is None:
        return None
    j, numeral = run.end(), run.group()
    p = text[i - 1] if i > floor else ""
    start, negative = (i - 1, True) if p == "负" else (i, False)
    if text[j : j + 2] == "分之":
        return _parts(text, start, j, numeral, negative)
    if p and p in "几数上" and numeral[0] in "十百千万亿" and text[i - 2 : i] != "以上":
        return None
    value = chinese_to_int(numeral)
    if value is None:
        return None
    digits, exponent = str(value), 0
    scaled = numeral[-1] in "万亿" and len(numeral) > 1
    if text[j : j + 1] == "点":
        point = _CN_FRACTION.match(text, j)
        if point is not None and text[point.end() : point.end() + 1] != "刻":
            rest = "".join(str(DIGITS[c]) for c in point.group(1))
            power = MAGNITUDES[point.group(2)] if point.group(2) else 0
            return Core(start, point.end(), digits + rest, power - len(rest), negative, "c", False, bool(power), "")
    c = text[j : j + 1]
    if c == "几":
        return None
    if c == "个" and (hundreds := _HUNDRED_MILLIONS.match(text, j)) is not None:
        return Core(start, hundreds.end(), digits, 8, negative, "c", False, True, "")
    if c and c in _MANY and (many := magnitude_at(text, j + 1))[1]:  # 两百多亿
        return Core(start, many[0], digits, many[1], negative, "c", False, True, "")
    return Core(start, j, digits, exponent, negative, "c", len(numeral) == 1, scaled, "")


_PARTS = {"百": 100, "千": 1000, "万": 10_000, "十": 10, "亿": 10**8, "百万": 10**6, "十万": 10**5}


def _parts(text: str, start: int, j: int, numeral: str, negative: bool) -> Core | None:
    """`百分之五`, `千分之3.5`, `三分之二`: the numeral before 分之 ends at j."""
    whole = _PARTS.get(numeral) or chinese_to_int(numeral)
    k = j + 2
    if not whole:
        return None
    if text[k : k + 1] in SPACE:
        k += 1
    c = text[k : k + 1]
    if not c or c == "几":
        return None
    if c.isdecimal():
        match = ARABIC.match(text, k)
        if match is None or len(match.group()) > 40:
            return None
        top = Fraction(match.group().translate(FOLD).replace(",", "").replace("{}", ""))
        end = match.end()
    else:
        run = CN_RUN.match(text, k)
        if run is None:
            return None
        value = 100 if run.group() == "百" else chinese_to_int(run.group())
        if value is None or text[run.end() : run.end() + 1] == "几":
            return None
        top, end = Fraction(value), run.end()
        point = _CN_FRACTION.match(text, end)
        if point is not None and not point.group(2):
            rest = "".join(str(DIGITS[c]) for c in point.group(1))
            top, end = top + Fraction(int(rest), 10 ** len(rest)), point.end()
    fraction = top / whole
    return Core(start, end, "", 0, False, "c", False, True, "", -fraction if negative else fraction)


def _unit(text: str, j: int) -> Measure | None:
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
            if after in NOT_BEFORE.get(word, ""):
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
    if c and c in _MANY:
        if c == "来" and not core.digits.endswith("0") and not core.exponent:
            return None
        found = _unit(text, j + 1)
        return None if found is None or found.unit.grade == 0 else found
    if c and c in "（(" and core.style == "a":
        return _bracketed(text, core)
    if c == "个" and text[j + 1 : j + 2] == "半":
        for word, name in (("月", "month"), ("小时", "hour"), ("星期", "week"), ("季度", "quarter")):
            if text.startswith(word, j + 2):
                return Measure(j + 2 + len(word), Unit("duration", name, 0, 3), Fraction(1, 2))
    found = _unit(text, j)
    if found is None:
        return None
    unit, end = found.unit, found.end
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
    elif unit.shift == -1 and text[end - 1] == "成" and _TENTHS.match(text, end) is not None:
        return Measure(end + 1, unit, Fraction(5 if text[end] == "半" else DIGITS[text[end]], 100))  # 六成五, 三成半
    elif unit.kind == "duration" and text[end : end + 1] == "半" and unit.name in ("year", "day", "week"):
        if text[end - 1] in "年天周" and text[end + 1 : end + 2] not in ("年", "天", "周"):
            return Measure(end + 1, unit, Fraction(1, 2))
    return found


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
