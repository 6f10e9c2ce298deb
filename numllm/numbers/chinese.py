"""Reads a number in Chinese or formal numerals at a place where it begins, with the traps of words that hold one."""

from __future__ import annotations

import re
from fractions import Fraction

from .context import counted_label, day_at, price_before, with_ordinal_words, with_unit
from .core import Core
from .measures import RATIO_MEASURE, Measure, measure_at
from .number import Number, make
from .numerals import DIGITS, FORMAL, TENS, chinese_to_int, decimal_string, exact_decimal
from .ordinals import read_ordinal
from .patterns import CALENDAR, CN_RUN, MARK_BEFORE, MOVED
from .ranges import try_range
from .reading import chinese_at
from .shapes import decade_at, iso_date
from .spoken import PER_TEN_THOUSAND, SPOKEN, try_spoken
from .units import NOT_BEFORE, Unit

__all__ = ["read_chinese", "read_formal", "read_half"]

_PER_TEN_THOUSAND = re.compile("万([一二三四五六七八九])\\Z")
_FORMAL_RUN = re.compile(f"[{FORMAL}零万亿]{{1,64}}")
_FORMAL_MONEY = re.compile(
    rf"(?P<whole>[{FORMAL}零万亿]{{1,64}})(?:人民币)?[元圆](?:零?(?P<jiao>[壹贰叁肆伍陆柒捌玖])角)?"
    rf"(?:零?(?P<fen>[壹贰叁肆伍陆柒捌玖])分)?[整正]?"
)
_FORMAL_COINS = re.compile("([壹贰叁肆伍陆柒捌玖])角(?:([壹贰叁肆伍陆柒捌玖])分)?[整正]?")
_CN_DATE = re.compile(
    f"(?:(?P<y>[{CALENDAR}0０Ｏ]{{4}})年(?:(?P<ym>[一二三四五六七八九十]{{1,3}})月(?:(?P<yd>[一二三四五六七八九十]{{1,3}})[日号])?)?"
    f"|(?P<m>[一二三四五六七八九十]{{1,2}})月(?:份|(?P<d>[一二三四五六七八九十]{{1,3}})[日号])?)"
)
_FORMAL_DATE = re.compile(
    "(?P<y>[零〇壹贰叁肆伍陆柒捌玖]{4})年(?:(?P<ym>零?[壹贰叁肆伍陆柒捌玖拾]{1,3})月(?:(?P<yd>零?[壹贰叁肆伍陆柒捌玖拾]{1,3})日)?)?"
    "(?P<m>)(?P<d>)"
)
_PAIR = re.compile("(?=一两|两三|二三|三四|三五|四五|五六|六七|七八|八九|一二[十百千万])")  # 七八成, 一二十人
_HOUR = re.compile("([零〇一二三四五六七八九十]{1,3})时(?:整|([一二三四五六七八九十]{1,3})分)?")
_SPOKEN_RATIO = re.compile(
    "([一二三四五六七八九十百]{1,4})比([一二三四五六七八九十百]{1,4})(?![万千亿]|点[零一二三四五六七八九])"
)
_STEP_WORDS = "这那某同上下前后另任头本哪"  # 这一年, 上一季度: a step in a row, no duration
_HALF = re.compile(r"半(?:(?P<m>个月)|(?P<y>年)(?![度报线])|(?P<d>天)|(?P<h>个?小时)|(?P<q>个季度))")
_COUNTED = re.compile(r"以[上下内]")
_COUNTED_BEFORE = re.compile(r"(?:满|至少|不[少多]于|仅有?|只有|每[^，。；\n]{1,8}为)\Z")
_IDIOM = re.compile(
    "二次|十年(?:树木|寒窗|磨一剑|如一日)|三年五载|一年(?:四季|之计|到头|一[度次]|半载)|三天两头|(?<=一波)三折|(?<=半斤)八两|"
    "三十而立|四十不惑|五十知天命|三百六十行|二十四节气|三十六(?:计|策)|七十二变|五十步|"
    "三天打鱼|两天晒网|三十年河|一日千里|一分钱一分货|五十步笑|一天天|(?<=三番)五次|两票制|[两三]桶油|三只松鼠|三人(?:行|成虎)|三个代表|两个(?:务必|维护|确立|毫不动摇|一百年)|二十国集团|四个(?:自信|全面|意识)"
)
_POINTS = re.compile(  # 加了两个点, 利率高两个点
    f"{MOVED.pattern}|[加减让扣抽返干赚亏][了到]?\\Z|浮\\Z|(?:利[率息]|收益率?|年化|费率?|佣金|息差|点差)[^，。；0-9]{{0,10}}\\Z"
)
_EACH = re.compile("([两二三四五六七八九十百千万]*[百千万][一二三四五六七八九])一\\Z")  # 两万八一平
_TRADED = re.compile("[买卖持增减][入出进仓有了]{0,2}\\Z")
_AFTER_MONEY = "以之的人钱为起每左上下整多余至到及和与或是不未计收者内外兑可只就买卖"  # 二元控制, 三元论 name no money
_VARIATE = re.compile(r"\s?(?:[A-Z]{3}|[a-z])")  # 二元 VAR, 二元 i.i.d.


def read_half(text: str, i: int) -> tuple[Number | None, int]:
    """半年, 半个月, 半天: half of one unit."""
    match = _HALF.match(text, i)
    if match is None or text[i - 1 : i] in tuple("上下前后大小过多各一夜"):
        return None, i + 1
    name = {"m": "month", "y": "year", "d": "day", "h": "hour", "q": "quarter"}[match.lastgroup or ""]
    return make(text, i, match.end(), "0.5", name, "duration", True)


def read_formal(text: str, i: int) -> tuple[Number | None, int]:
    """壹佰贰拾叁元肆角伍分整, 叁年: formal numerals."""
    if text[i] == "伍" and text[i - 1 : i] in tuple("队退行落入"):  # 队伍年轻
        return None, i + 1
    date = _FORMAL_DATE.match(text, i)
    if date is not None and (number := _chinese_date(text, date)) is not None:
        return number
    money = _FORMAL_MONEY.match(text, i)
    if money is not None and (whole := chinese_to_int(money.group("whole").rstrip("零"))) is not None:
        cents = 100 * whole
        for name, worth in (("jiao", 10), ("fen", 1)):
            if digit := money.group(name):
                cents += worth * DIGITS[digit]
        kind, unit = price_before(text, i, "CNY")
        return make(text, i, money.end(), exact_decimal(Fraction(cents, 100)), unit, kind, True)
    if (coins := _FORMAL_COINS.match(text, i)) is not None:  # 肆角伍分
        jiao, fen = coins.groups()
        cents = 10 * DIGITS[jiao] + (DIGITS[fen] if fen else 0)
        return make(text, i, coins.end(), exact_decimal(Fraction(cents, 100)), "CNY", "amount", True)
    run = _FORMAL_RUN.match(text, i)
    assert run is not None
    value = chinese_to_int(run.group())
    if value is None:
        return None, run.end()
    core = Core(i, run.end(), str(value), 0, False, "c", len(run.group()) == 1, False, "")
    if text[core.end : core.end + 1] == "日":
        return _chinese_day(text, core)
    measure = measure_at(text, core)
    if measure is None or (core.lone and measure.unit.grade < 2 and measure.unit.name != "期"):
        if measure is None or not counted_label(text, core.start, measure.end):
            return None, run.end()
    return with_unit(text, core, measure)


def read_chinese(text: str, i: int, floor: int) -> tuple[Number | None, int]:
    """三千万元, 二〇二四年, （一）, 八五折: a Chinese numeral with what makes it a quantity, a date or a mark;
    None for one that is part of a word.
    """
    p = text[i - 1] if i > floor else ""
    if p == "第":
        return read_ordinal(text, i, floor)
    run = CN_RUN.match(text, i)
    assert run is not None
    j = run.end()
    if text[i] == "零" and j - i > 1:  # 一年零三个月
        return None, i + 1
    n = text[j : j + 1]
    if n and n in "年月0０Ｏ":
        date = _CN_DATE.match(text, i)
        if date is not None and (number := _chinese_date(text, date)) is not None:
            return number
    if n == "世" and (decade := decade_at(text, i)) is not None:
        return decade
    if n and n in "、)）" and j - i <= 3 and _is_mark(text, i, j, p):
        value = chinese_to_int(run.group())
        if value is not None:
            parenthesised = p in "（(" and bool(p) and n in "）)"
            start, end = with_ordinal_words(text, i - 1, j + 1) if parenthesised else (i, j)
            return make(text, start, end, str(value), "", "ordinal", False)
    if n == "折" and j - i == 2 and all(c in "一二三四五六七八九" for c in run.group()):
        if text[j + 1 : j + 2] not in tuple(NOT_BEFORE["折"]):
            value = decimal_string("".join(str(DIGITS[c]) for c in run.group()), -2)
            return make(text, i, j + 1, value, "1", "rate", True)
    if run.group() == "一" and n == "半":
        after = text[j + 1 : j + 2]
        if (p and p in "近约逾超过占有足到达") or (
            after and (after in "以的股多左不时" or not "\u4e00" <= after <= "\u9fff")
        ):
            return make(text, i, j + 1, "0.5", "1", "rate", True)
        return None, j + 1
    core = chinese_at(text, i, floor)
    if core is None and text[i] == "万" and (share := _PER_TEN_THOUSAND.match(run.group())) is not None:
        if PER_TEN_THOUSAND.search(text, max(floor, i - 11), i + 1) is not None:  # 佣金万三
            return make(text, i, j, decimal_string(str(DIGITS[share.group(1)]), -4), "1", "rate", True)
    if core is None and n and n in "平斤个张只吨套件人" and (each := _EACH.match(run.group())) is not None:
        if (value := chinese_to_int(each.group(1))) is not None:
            return make(text, i, j - 1, str(value), "", "other", True)
    if core is None:
        return _approximate(text, i, run.group()) or (None, j)
    if n == "比" and (ratio := _SPOKEN_RATIO.match(text, i)) is not None:
        return _spoken_ratio(text, ratio)
    if n == "又" and (whole := chinese_to_int(run.group())) is not None:
        part = chinese_at(text, j + 1, j + 1)  # 一又二分之一
        if part is not None and part.fraction is not None:
            return make(text, i, part.end, exact_decimal(whole + part.fraction), "1", "rate", True)
    if (after := text[core.end : core.end + 1]) and after in SPOKEN and (spoken := try_spoken(text, core)) is not None:
        return spoken
    if core.fraction is not None and core.fraction.denominator == 1 and core.fraction == 0:
        return make(text, core.start, core.end, "0", "1", "rate", True)
    if core.fraction is not None and (spread := _share_range(text, core, run.group())) is not None:
        return spread
    ratio = RATIO_MEASURE._replace(end=core.end) if core.fraction is not None else None
    measure = ratio or _chinese_measure(text, core, p)
    ranged = try_range(text, core, measure)
    if ranged is not None:
        return ranged
    if measure is None:
        if text[core.end : core.end + 1] == "日":
            number, end = _chinese_day(text, core)
            return number, end
        after = text[core.end : core.end + 1]
        if after == "时" and (hour := _hour(text, i)) is not None:
            return hour
        if after == "大" or _IDIOM.match(text, i) is not None:  # 二十大, 十九大
            return None, core.end
        if core.scaled or (not core.lone and core.exponent < 0):
            return make(text, core.start, core.end, core.value(), "", "other", True)
        if core.lone or not any(c in TENS or c in "万亿" for c in run.group()[1:]):
            return None, max(core.end, i + 1)
        return make(text, core.start, core.end, core.value(), "", "other", any(c in "百千万亿" for c in run.group()))
    if core.lone and core.digits == "1":
        grade = measure.unit.grade
        counted = grade == 2 and (
            _COUNTED.match(text, measure.end) is not None
            or _COUNTED_BEFORE.search(text[max(0, i - 12) : i]) is not None
        )
        if (grade < 3 and not counted) or (p and p in _STEP_WORDS):
            return None, j
    if _IDIOM.match(text, i) is not None:
        return None, measure.end
    return with_unit(text, core, measure)


def _hour(text: str, i: int) -> tuple[Number, int] | None:
    """一月一日零时, 自二十四时: an hour of the day."""
    hour = _HOUR.match(text, i) if text[i - 1 : i] in tuple("日号午晨晚自") else None
    value = chinese_to_int(hour.group(1)) if hour is not None else None
    if hour is None or value is None or value > 24:
        return None
    minute = chinese_to_int(hour.group(2)) or 0 if hour.group(2) else 0
    return make(text, i, hour.end(), f"{value:02d}:{minute:02d}", "", "time", False)


def _share_range(text: str, core: Core, whole: str) -> tuple[Number, int] | None:
    """百分之十到十五: the second share is of the same whole."""
    if whole not in ("百", "千", "万") or text[core.end : core.end + 1] not in ("至", "到"):
        return None
    top = chinese_at(text, core.end + 1, core.end + 1)
    if top is None or top.fraction is not None or top.scaled or measure_at(text, top) is not None:
        return None
    low, high = core.value(), top.value(-{"百": 2, "千": 3, "万": 4}[whole])
    if "/" in low or Fraction(low) >= Fraction(high) or text[top.end : top.end + 1] in ("分", "日", "月"):
        return None
    return Number(text[core.start : top.end], core.start, top.end, low, "1", "rate", True, low, high), top.end


def _approximate(text: str, i: int, numeral: str) -> tuple[Number, int] | None:
    """七八成, 三五天, 两三万元, 二十七八岁: two digits side by side name a range from the one to the other."""
    pairs = list(_PAIR.finditer(numeral))
    if len(pairs) != 1:
        return None
    k = pairs[0].start()
    low, high = chinese_to_int(numeral[: k + 1] + numeral[k + 2 :]), chinese_to_int(numeral[:k] + numeral[k + 1 :])
    if low is None or high is None:
        return None
    end = i + len(numeral)
    core = Core(i, end, str(low), 0, False, "c", False, False, "")
    measure = measure_at(text, core)
    if measure is None and numeral[-1] in "百千万亿":
        measure = Measure(end, Unit("other", "", 0, 1))
    if measure is None or measure.unit.grade == 0 or measure.add is not None:
        return None
    unit = measure.unit
    first, second = core.value(unit.shift), core._replace(digits=str(high)).value(unit.shift)
    kind, name = price_before(text, i, unit.name) if unit.kind == "amount" else (unit.kind, unit.name)
    return Number(text[i : measure.end], i, measure.end, first, name, kind, True, first, second), measure.end


def _spoken_ratio(text: str, match: re.Match[str]) -> tuple[Number | None, int]:
    """三比一: a ratio."""
    top, bottom = (chinese_to_int(part) for part in match.groups())
    if not top or not bottom:
        return None, match.end()
    return make(text, match.start(), match.end(), exact_decimal(Fraction(top, bottom)), "1", "rate", True)


def _chinese_measure(text: str, core: Core, p: str) -> Measure | None:
    """`measure_at` with the traps of a lone Chinese numeral: 三元论, 一成不变, 一折, 四季度, 九折."""
    measure = measure_at(text, core)
    if measure is None or not core.lone:
        return measure
    after = text[measure.end : measure.end + 1]
    word = text[measure.end - 1]
    if word == "元" and "\u4e00" <= after <= "\u9fff" and after not in _AFTER_MONEY:
        return None
    if word == "元" and _VARIATE.match(text, measure.end):
        return None
    if (word == "成" and after and after in "不") or word == "厘":
        return None
    if word == "周" and p and p in "上下本":
        return None
    if word == "折" and core.digits == "1" and after and after not in "，。、优出销以的左至到起":
        return None
    if (word == "门" and p == "花") or (word == "名" and p == "前"):
        return None
    if measure.unit.name == "1":  # 三个百分点; 两个点 are points of a move, or dots
        left = text[max(0, core.start - 14) : core.start]
        dots = text.endswith("个点", core.end, measure.end) and _POINTS.search(left)
        return None if dots is None else measure
    if measure.unit.grade == 0 and counted_label(text, core.start, measure.end):  # 共五章
        return measure
    if after and word + after in ("套房", "类户"):
        return None
    if word == "手" and _TRADED.search(text, max(0, core.start - 3), core.start) is not None:  # 买了五手
        return measure
    if word in "分点手头份张" or core.digits == "0":
        return None if word in "分点手头" or core.digits in "01" else measure
    if measure.unit.name == "期" and p not in tuple("分续计"):  # 三期工程, but 分三期, 连续三期, 累计六期
        return None
    if word in "级代号节章款度" and measure.unit.grade == 0:
        return None
    return measure


def _is_mark(text: str, i: int, j: int, p: str) -> bool:
    left = text[max(0, i - 10) : i]
    if text[j] in ")）":
        return bool(p) and p in "（("
    return p in ("\u3000", " ") or MARK_BEFORE.search(left) is not None


def _chinese_date(text: str, match: re.Match[str]) -> tuple[Number, int] | None:
    groups = match.groupdict()
    year = groups["y"] and "".join(str(DIGITS.get(c, 0)) for c in groups["y"])
    month, day = groups["ym"] or groups["m"], groups["yd"] or groups["d"]
    m = chinese_to_int(month) if month else None
    d = chinese_to_int(day) if day else None
    if (month and (m is None or not 1 <= m <= 12)) or (day and (d is None or not 1 <= d <= 31)):
        return None
    return make(text, match.start(), match.end(), iso_date(year, m, d), "", "date", False)


def _chinese_day(text: str, core: Core) -> tuple[Number | None, int]:
    """三十日内: a duration; 十五日 alone: a day of the month; 一日游: a word."""
    number, end = day_at(text, core)
    if core.lone and (not number.variable or text.startswith("年化", end)):  # 七日年化
        return None, end
    return number, end
