"""Numbers as they are spoken: 月息六厘, 三块五, 八角五分, 佣金万2.5, 下午三点半."""

from __future__ import annotations

import re
from fractions import Fraction

from .context import price_before
from .core import Core
from .number import Number, make
from .numerals import DIGITS, D, chinese_to_int, exact_decimal

__all__ = ["DAYTIME", "PER_TEN_THOUSAND", "SPOKEN", "try_spoken"]

SPOKEN = "厘分块毛角点"  # what stands behind a numeral that `try_spoken` may read
_DIGIT = f"[{D}一二三四五六七八九]"
_INTEREST = re.compile(r"(?P<period>[年月日])(?:息|利率?|利息)[^，。；、\n0-9]{0,4}\Z")
_INTEREST_UNIT = re.compile(rf"(?P<unit>[厘分])(?:(?P<half>半)|(?P<tenth>{_DIGIT})厘?(?![{D}]))?(?![之钟])")
# power of ten of 厘: one in a hundred a year, in a thousand a month, in ten thousand a day; 分 is ten of them
_INTEREST_POWER = {"年": -2, "月": -3, "日": -4}
_ONE_PIECE = "一[斤个张只平米公克杯碗盒瓶份串件次天月年吨度晚人]"
_EACH = re.compile(_ONE_PIECE)  # 三块一斤
_COINS = re.compile(
    rf"块(?!{_ONE_PIECE})(?P<jiao>{_DIGIT})(?:[毛角](?:(?P<cents>{_DIGIT})分?)?钱?)?(?![{D}十百千万个成块%％.]|(?!{_ONE_PIECE}){_DIGIT})|[角毛](?P<fen>{_DIGIT})(?:分钱?|(?![{D}十百千万个.]|{_DIGIT}))|"
    r"(?P<mao>[角毛])钱?|(?P<cent>分)钱|(?P<yuan>块)(?![钱地板砖屏表电])"
)
_PAID = re.compile(  # 涨了五毛, 卖12块
    "(?:[涨跌升降差省花卖收付交给赚赔亏贵罚补退赢输欠借还]了?|每[\u4e00-\u9fff]|[破超值]了?|便宜了?|优惠|补贴|[卖涨跌降]到|只[要需]|仅需|[低高]了|合计|共|[费价])"
    "[约近才]?\\Z"
)
PER_TEN_THOUSAND = re.compile(  # 佣金按万2.5收取, 日息万五
    "(?:(?:佣金|费率?|税率?|利率|[日月]息)[^，。；0-9]{0,4}|按)万\\Z"
)
_CLOCK = re.compile(
    rf"点(?:(?P<half>半)|(?P<quarters>[一三])刻|(?P<minute>[{D}]{{1,2}}|[一二三四五]?十[一二三四五六七八九]?)分|整|钟)?"
)
DAYTIME = re.compile("(?:(?P<late>下午|晚上?|傍晚)|上午|凌晨|清晨|早上?|中午)\\Z")


def _digit(c: str) -> int:
    return DIGITS[c] if c in DIGITS else int(c)


def try_spoken(text: str, core: Core) -> tuple[Number, int] | None:
    """The number whose numeral is `core` and whose unit is one of speech; None where it is not."""
    if core.fraction is not None or core.scaled:
        return None
    c = text[core.end]
    if c in "厘分" and (number := _interest(text, core)) is not None:
        return number
    if c == "点":
        return _clock(text, core)
    if c == "厘" or (coins := _COINS.match(text, core.end)) is None:
        return None
    if coins.group("yuan") or (coins.group("mao") and core.style == "c" and not coins.group().endswith("钱")):
        paid = _PAID.search(text, max(0, core.start - 5), core.start) is not None
        if not paid and _EACH.match(text, coins.end()) is None:  # 三角债, 四角, 三块
            return None
    value = Fraction(core.value())
    if coins.group("jiao"):
        value += Fraction(_digit(coins.group("jiao")), 10)
        if coins.group("cents"):
            value += Fraction(_digit(coins.group("cents")), 100)
    elif coins.group("fen"):
        value = value / 10 + Fraction(_digit(coins.group("fen")), 100)
    elif not coins.group("yuan"):
        value /= 100 if coins.group("cent") else 10
    kind, unit = price_before(text, core.start, "CNY")
    return make(text, core.start, coins.end(), exact_decimal(value), unit, kind, True)


def _interest(text: str, core: Core) -> tuple[Number, int] | None:
    """月息六厘 is 0.006, 年息一分五 is 0.15."""
    period = _INTEREST.search(text, max(0, core.start - 8), core.start)
    unit = _INTEREST_UNIT.match(text, core.end) if period is not None else None
    if period is None or unit is None:
        return None
    tens = unit.group("unit") == "分"
    power = _INTEREST_POWER[period.group("period")] + tens
    value = Fraction(core.value())
    if unit.group("half"):
        value += Fraction(1, 2)
    elif unit.group("tenth"):
        value += Fraction(_digit(unit.group("tenth")), 10)
    return make(text, core.start, unit.end(), exact_decimal(value * Fraction(10) ** power), "1", "rate", True)


def _clock(text: str, core: Core) -> tuple[Number, int] | None:
    """下午三点半 is 15:30."""
    day = DAYTIME.search(text, max(0, core.start - 2), core.start)
    if day is None or core.exponent or len(core.digits) > 2 or int(core.digits) > 24:
        return None
    clock = _CLOCK.match(text, core.end)
    assert clock is not None
    hour = int(core.digits) + 12 * (day.group("late") is not None and int(core.digits) < 12)
    minute = 0
    if clock.group("half"):
        minute = 30
    elif clock.group("quarters"):
        minute = 15 * DIGITS[clock.group("quarters")]
    elif spoken := clock.group("minute"):
        minute = int(spoken) if spoken.isdecimal() else chinese_to_int(spoken) or 0
    return make(text, core.start, clock.end(), f"{hour:02d}:{minute:02d}", "", "time", False)
