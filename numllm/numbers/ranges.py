"""Ranges: two numbers with 至, 到 or a dash between them that are one quantity, or one stretch of the calendar."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from .context import cue_before, day_at, price_before
from .core import Core, magnitude_at
from .measures import RATIO_MEASURE, Measure, measure_at
from .number import Number
from .numerals import D, chinese_to_int
from .patterns import ARABIC, MOVED
from .reading import arabic_at, chinese_at
from .units import MAGNITUDES, UNITS, Unit

__all__ = ["try_range"]

_RANGE = re.compile(
    r"\s?(?:至|到|[~～]{1,2}|[-–—―－−﹣]{1,2})\s?"
    r"(?=(?:(?:US|HK|NT|[ACS])?[$¥￥€£]|RMB|USD|HKD|EUR)?[-−负]?[0-9０-９零一二三四五六七八九十两百千万壹贰叁])"
)
_DAY_SPAN = re.compile(rf"日\s?[至到\-–—―~～－−﹣]\s?([{D}]{{1,3}}|[一二三四五六七八九十百]{{1,5}})日")
_SPAN_BEFORE = re.compile("(?:持有|持续|期限?|超过|逾期|账龄|拖欠|满|少于|连续)[^，。；、0-9]{0,4}\\Z")
_SPAN_AFTER = re.compile("[（(]?不?含|以?之?内|收取|的?期限?|赎回|不等|后|未")
_CURRENCY_SIGN = re.compile("(?:US|HK|NT|[ACS])?[$¥￥€£]|RMB|USD|HKD|EUR")
_FORECAST = re.compile(  # 24-26年归母净利润
    "(?:[的分各]|预[计测]|公司|[营归]|收入|净利|利润|业绩|盈利|复合|C?AGR|EPS|P/?E)(?![\u4e00-\u9fff]?期)"
)
_ARITHMETIC = tuple("×÷+=≈＝＋−*✕－-—–/^")


def try_range(text: str, core: Core, measure: Measure | None) -> tuple[Number, int] | None:
    """`7至15年`, `5%-8%`, `20-30万元`: core is the low end, measure its unit if it has one."""
    after = measure.end if measure is not None else core.end
    c = text[after : after + 1]
    if c == "日" and measure is None:
        return _day_span(text, core)
    if not c or c not in "至到-–—―~～－−﹣ ":
        return None
    separator = _RANGE.match(text, after)
    if separator is None or (measure is not None and (measure.add is not None or measure.unit.grade == 0)):
        return None
    k = separator.end()
    sign = separator.group().strip()
    signs = _CURRENCY_SIGN.match(text, k)
    if signs is not None:
        if not core.currency or measure is not None or core.scaled:
            return None
        k = signs.end()
    signed = text[k] in "-−负"
    if signed:
        if not core.negative or sign in ("-", "−", "－"):
            return None
        k += 1
    other = arabic_at(text, k, k) if text[k] in "0123456789０１２３４５６７８９" else chinese_at(text, k, k)
    if other is None or other.end - k > 40:
        return None
    other = other._replace(negative=signed)
    dash = sign not in ("至", "到")
    n = text[other.end : other.end + 1]
    if dash and measure is None:
        if n and n in "-–—/.":  # 1-2-3, 3-5/7
            return None
        if core.digits == "1" and text[core.start - 1 : core.start] in ("(", "（"):  # (1-20%)
            return None
    if dash and text[core.start - 1 : core.start] in _ARITHMETIC:
        return None
    if measure is None and n == "日":
        days = day_at(text, other, core.start)[0]
        if days.variable and core.fraction is None and Fraction(core.value()) < Fraction(days.value):
            end, low = days.end, core.value()
            return Number(text[core.start : end], core.start, end, low, "day", "duration", True, low, days.value), end
    if measure is None and core.style == "a" and n and (n in "年月日" or text[other.end : other.end + 2] == " 年"):
        if (number := _date_range(text, core, other, n)) is not None:
            return number
    found = RATIO_MEASURE._replace(end=other.end) if other.fraction is not None else measure_at(text, other)
    if found is None or found.unit.grade == 0 or found.add is not None:
        if measure is not None:
            return None
        close = dash and len(separator.group()) == 1 and not other.scaled  # $100-200
        if core.currency and (close or signs is not None):
            unit, end = Unit("amount", core.currency, 0, 3), other.end
        elif core.exponent < 0 and other.exponent < 0 and cue_before(text, core.start) == "rate":
            unit, end = UNITS["倍"], other.end
        elif _in_words(text, core, other):
            cue = cue_before(text, core.start)
            unit, end = UNITS["倍"] if cue == "rate" else Unit(cue or "other", "", 0, 1), other.end
        else:
            return None
    else:
        unit, end = found.unit, found.end
        if unit.name == "day" and text[end - 1] == "日":
            return None
    if dash and text[end : end + 1] in _ARITHMETIC and text[end + 1 : end + 2] not in ("年", "月", "日"):
        return None
    low = core
    if measure is None:
        if core.fraction is not None or other.fraction is not None:
            return None
        if not core.scaled and other.scaled:
            low = core._replace(exponent=core.exponent + _scale_of(text, k, other))
            if Decimal(low.value()) >= Decimal(other.value()):  # 5000至1万元
                low = core
    elif measure.unit != unit or (unit.shift == -2 and (text[after - 1] in "%％﹪") != (text[end - 1] in "%％﹪")):
        return None  # 提升4.3个百分点至76.8%
    first, second = low.value(unit.shift), other.value(unit.shift)
    if "/" in first or "/" in second:
        return None
    if core.negative and signed and Decimal(first) > Decimal(second):  # -2%至-5%
        first, second = second, first
    if Decimal(first) >= Decimal(second):
        return None
    if measure is not None and unit.kind != "rate" and not dash and Decimal(second) > 5 * Decimal(first):
        if MOVED.search(text, max(0, core.start - 3), core.start) is not None:  # 上涨20元至850元
            return None
    lone = core.lone and other.lone and unit.grade < 2
    kind, name = unit.kind, unit.name
    if kind == "amount":
        kind, name = price_before(text, core.start, name)
    elif name == "点":
        kind = "index"
    number = Number(text[core.start : end], core.start, end, first, name, kind, not lone, first, second)
    return number, end


def _in_words(text: str, core: Core, other: Core) -> bool:
    """Whether two numerals without unit are one range: 100万至200万, 15到20之间."""
    if core.fraction is not None or other.fraction is not None:
        return False
    if core.scaled and other.scaled:
        return True
    years = len(core.digits) == len(other.digits) == 4 and core.exponent == other.exponent == 0
    return text.startswith("之间", other.end) and not years


def _day_span(text: str, core: Core) -> tuple[Number, int] | None:
    """`持有7日至30日`, `30日至60日内`: durations; None for days of the calendar (`5日至10日`)."""
    span = _DAY_SPAN.match(text, core.end)
    if span is None or core.fraction is not None or core.exponent:
        return None
    high = int(span.group(1)) if span.group(1).isdecimal() else chinese_to_int(span.group(1)) or 0
    low, end = int(core.value()), span.end()
    before = text[max(0, core.start - 8) : core.start]
    if low >= high or (before and before[-1] in "月自") or not (
        high > 31 or _SPAN_BEFORE.search(before) is not None or _SPAN_AFTER.match(text, end) is not None
    ):
        return None
    return Number(text[core.start : end], core.start, end, str(low), "day", "duration", True, str(low), str(high)), end


def _scale_of(text: str, i: int, core: Core) -> int:
    """The power of ten of the magnitude word that ends a numeral read at i."""
    if core.style == "c":
        return MAGNITUDES.get(text[core.end - 1], 0)
    match = ARABIC.match(text, i)
    return magnitude_at(text, match.end())[1] if match is not None else 0


def _date_range(text: str, core: Core, other: Core, n: str) -> tuple[Number, int] | None:
    """`2014-2018年`, `1-6月`, `10-15日`: years, months and days of the calendar, not durations."""
    end = other.end + (1 if n in "年月日" else 2)
    low, high = core.digits, other.digits
    if core.exponent or other.exponent or len(low) > 4 or len(high) > 4:
        return None
    if n == "月":
        calendar = 1 <= int(low) <= 12 and 1 <= int(high) <= 12
        low, high = f"--{low:0>2}", f"--{high:0>2}"
    elif n == "日":
        calendar = 1 <= int(low) <= 31 and 1 <= int(high) <= 31
    elif len(low) == 4 and len(high) == 2:  # 2024-26年
        calendar = low < low[:2] + high
        high = low[:2] + high
    else:
        calendar = len(low) == len(high) == 4 or (
            len(low) == len(high) == 2 and 10 <= int(low) < int(high) <= int(low) + 5 and _FORECAST.match(text, end)
        )
    if not calendar:
        return None
    if text[end : end + 1] == {"月": "份", "年": "度"}.get(text[end - 1]):
        end += 1
    number = Number(text[core.start : end], core.start, end, low, "", "date", False, low, high)
    return number, end
