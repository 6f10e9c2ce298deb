"""Numbers in Chinese financial text: where they stand, what they are worth, and whether they mean something.

`find_numbers` walks once over a text. A compiled regular expression finds the next character that can begin a
number; small anchored readers then read the number (`reading`), its unit and, where both fail to decide, its
surroundings (`context`). Every reader looks only a bounded distance ahead and back (digits apart, which are read
once), so the time is linear in the length of the text. All arithmetic is exact: digits are shifted as strings.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from .context import bare_number, day_at, in_address, label_at, make, price_before, read_index, with_ordinal_words, with_unit
from .number import Number
from .numerals import CN, DIGITS, FOLD, FORMAL, TENS, D, chinese_to_int, decimal_string, exact_decimal
from .patterns import AFTER_ONE, ARABIC, CALENDAR, CN_RUN, MARK_BEFORE, WORD_TAIL
from .reading import RATIO_MEASURE, Core, Measure, arabic_at, chinese_at, magnitude_at, measure_at
from .shapes import iso_date, try_date, try_range, try_special
from .spoken import SPOKEN, try_spoken
from .units import NOT_BEFORE, SPACE

__all__ = ["find_numbers"]

_CIRCLED = {chr(base + i): i + 1 for base in (0x2460, 0x2474, 0x2488) for i in range(20)}
_CIRCLED |= {chr(0x3220 + i): i + 1 for i in range(10)}
_SEED = re.compile(rf"[<{D}{CN}{FORMAL}半①-⒛㈠-㈩](?!(?<=一)(?<!第一)[^{AFTER_ONE}])")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,4000}>")
_FORMAL_RUN = re.compile(f"[{FORMAL}零万亿]{{1,64}}")
_FORMAL_MONEY = re.compile(
    rf"(?P<whole>[{FORMAL}零万亿]{{1,64}})(?:人民币)?[元圆](?:零?(?P<jiao>[壹贰叁肆伍陆柒捌玖])角)?"
    rf"(?:零?(?P<fen>[壹贰叁肆伍陆柒捌玖])分)?[整正]?"
)
_CN_DATE = re.compile(
    f"(?:(?P<y>[{CALENDAR}0０Ｏ]{{4}})年(?:(?P<ym>[一二三四五六七八九十]{{1,3}})月(?:(?P<yd>[一二三四五六七八九十]{{1,3}})[日号])?)?"
    f"|(?P<m>[一二三四五六七八九十]{{1,2}})月(?:份|(?P<d>[一二三四五六七八九十]{{1,3}})[日号])?)"
)
_FORMAL_DATE = re.compile(
    "(?P<y>[零〇壹贰叁肆伍陆柒捌玖]{4})年(?:(?P<ym>零?[壹贰叁肆伍陆柒捌玖拾]{1,3})月(?:(?P<yd>零?[壹贰叁肆伍陆柒捌玖拾]{1,3})日)?)?"
    "(?P<m>)(?P<d>)"
)
_PER_MANY = re.compile(r"(?P<many>10{1,3})万分之(?P<top>[0-9]{1,9}(?:\.[0-9]{1,9})?)")  # 10万分之3
_PER_TEN_THOUSAND = re.compile("(?:(?:佣金|费率?|税率?|利率)[^，。；0-9]{0,4}|按)万\\Z")  # 佣金按万2.5收取
_SPOKEN_RATIO = re.compile("([一二三四五六七八九十百]{1,4})比([一二三四五六七八九十百]{1,4})(?![万千亿]|点[零一二三四五六七八九])")
_STEP_WORDS = "这那某同上下前后另任头本哪"  # 这一年, 上一季度: a step in a row, no duration
_HALF = re.compile(r"半(?:(?P<m>个月)|(?P<y>年)(?!度|报)|(?P<d>天)|(?P<h>个?小时)|(?P<q>个季度))")
_COUNTED = re.compile(r"以[上下内]")
_COUNTED_BEFORE = re.compile(r"(?:满|至少|不[少多]于|仅有?|只有|每[^，。；\n]{1,8}为)\Z")
_IDIOM = re.compile(
    "十年(?:树木|寒窗|磨一剑|如一日)|三年五载|一年(?:四季|之计|到头|一[度次]|半载)|三天两头|(?<=一波)三折|(?<=半斤)八两|"
    "三天打鱼|两天晒网|三十年河|一日千里|一分钱一分货|五十步笑|一天天|(?<=三番)五次|两票制|[两三]桶油|三只松鼠|三人(?:行|成虎)|三个代表|两个(?:务必|维护|确立)|四个(?:自信|全面|意识)"
)
_AFTER_MONEY = "以之的人钱为起每左上下整多余至到及和与或是不未计收者内外兑可只就买卖"  # 二元控制, 三元论 name no money


def find_numbers(text: str) -> list[Number]:
    """Every number of a text, in order of place, without overlap.

    Found are Arabic numerals (thousands separators, full width, spaced groups, exponents, LaTeX), Chinese and
    formal numerals, fractions and ratios, currency signs and units, ranges, and, as `variable=False`, dates,
    times, ordinals, list marks, labels, document numbers, identifiers and indices in formulas. Numerals that are
    part of a word (一般, 三角债, 四大行, 万一) are words and are not returned.

    Any string is accepted; the time is linear in its length.
    """
    found: list[Number] = []
    position = floor = 0
    search = _SEED.search
    while (seed := search(text, position)) is not None:
        i = seed.start()
        c = text[i]
        if c in "0123456789０１２３４５６７８９":
            number, position = _read_arabic(text, i, floor)
        elif c in _CIRCLED:
            number, position = Number(c, i, i + 1, str(_CIRCLED[c]), "", "ordinal", False), i + 1
        elif c == "<":
            tag = _TAG.match(text, i)
            position = tag.end() if tag is not None else i + 1
            continue
        elif c == "半":
            number, position = _read_half(text, i)
        elif c in FORMAL:
            number, position = _read_formal(text, i)
        else:
            number, position = _read_chinese(text, i, floor)
        if number is not None:
            if found and number.start - found[-1].end == 1:
                number = _in_list(text, found[-1], number)
            elif found and number.start == found[-1].end and number.unit == "分" and found[-1].unit == "hour":
                number = replace(number, unit="minute", kind="duration", variable=True)  # 4小时30分
            elif number.unit == "层" and found and number.start == floor and found[-1].text[-1] in "号栋幢座楼":
                number = replace(number, unit="", kind="ordinal", variable=False)  # 15号10层
            found.append(number)
            floor = number.end
    return found


def _in_list(text: str, last: Number, number: Number) -> Number:
    """A number that goes on from the one before it: 第五十条、五十一条 are ordinals, 弹性为0.3与0.7 are rates."""
    if text[last.end] not in "、和与至或及到,，":
        return number
    if number.kind == "count" and last.kind == "ordinal" and last.text[-1] == number.text[-1]:
        return replace(number, unit="", kind="ordinal", variable=False)
    if number.kind == "other" and last.kind == "rate" and "." in number.text and last.text.isascii():
        if last.text[-1].isdigit() and last.low is None and "/" not in last.text and ":" not in last.text:
            return replace(number, unit="1", kind="rate", variable=True)
    return number


def _read_arabic(text: str, i: int, floor: int) -> tuple[Number | None, int]:
    p = text[i - 1] if i else ""
    if p == "第" or (p in SPACE and i > 1 and text[i - 2] == "第"):
        return _read_ordinal(text, i, floor)
    if p == "\\" and text[i - 2 : i - 1] == "\\":  # a new row of a LaTeX matrix
        p = ""
    if p and p.isascii() and (p.isalpha() or p in "_^\\@#" or (p == "{" and text[i - 2 : i - 1] in ("^", "_"))):
        index = read_index(text, i, floor, p)
        if index is not None:
            return index
    if p and p in "%=&/_-.?" and in_address(text, i):
        tail = WORD_TAIL.match(text, i)
        end = tail.end() if tail else i + 1
        return None, end
    if p and p in "-−" and text[i - 2 : i - 1] == "{" and text[i - 3 : i - 2] in ("_", "^"):  # x_{-1}
        index = ARABIC.match(text, i)
        assert index is not None
        return make(text, i - 1, index.end(), "-" + index.group(), "", "formula", False)
    core = arabic_at(text, i, floor)
    j = core.end
    n = text[j : j + 1]
    if n and p and ((n in ")）" and p in "(（") or (n == "$" and text[j + 1 : j + 2] != "\\")) and core.start == i > floor:
        enclosed = _read_enclosed(text, core)
        if enclosed is not None:
            return enclosed
    plain = not core.scaled and not core.currency and j - i <= 4
    if plain and n:
        dated = try_date(text, i, j, n)
        if dated is not None:
            return dated
    if n:
        special = try_special(text, i, core, n)
        if special is not None:
            return special
        if n in SPOKEN and (spoken := try_spoken(text, core)) is not None:
            return spoken
        if n == "万" and (share := _PER_MANY.match(text, i)) is not None:
            value = exact_decimal(Fraction(share.group("top")) / (int(share.group("many")) * 10_000))
            return make(text, i, share.end(), value, "1", "rate", True)
        if p == "万" and core.start == i > floor and _PER_TEN_THOUSAND.search(text, max(floor, i - 12), i) is not None:
            return make(text, i - 1, j, core.value(-4), "1", "rate", True)
    if j - i > 40:
        return make(text, i, j, text[i:j].translate(FOLD), "", "identifier", False)
    measure = measure_at(text, core)
    ranged = try_range(text, core, measure)
    if ranged is not None:
        return ranged
    if measure is None:
        return bare_number(text, core, floor)
    if measure.unit.grade == 1 and not core.scaled and j - i <= 3:
        label = label_at(text, core, text[max(0, i - 14) : i], text[i:j], text[i:j].isdigit())
        if label is not None:
            return label
    return with_unit(text, core, measure)


def _read_enclosed(text: str, core: Core) -> tuple[Number, int] | None:
    """`(12,345.67)万元`, a negative of the accountant, and `$3.5$亿元`: the unit stands behind the closing sign."""
    i, j = core.start, core.end
    negative = text[j] != "$"
    if negative and not ("." in text[i:j] or j - i > 2):
        return None
    end, power = magnitude_at(text, j + 1)
    core = core._replace(end=end, exponent=core.exponent + power, scaled=bool(power) or core.scaled)
    if negative:
        core = core._replace(start=i - 1, negative=True)
    measure = measure_at(text, core)
    if measure is None or measure.unit.grade < 3 - (not negative) or (negative and measure.unit.kind not in ("amount", "price", "rate")):
        return None
    return with_unit(text, core, measure)


_ORDINAL_TO = re.compile(r"\s?[-–—~～至到]\s?[0-9]{1,4}")
_ORDINAL_TO_CHINESE = re.compile("[至到][一二三四五六七八九十百]{1,5}(?=[条款项章节编期])")
_ORDINAL_PARTS = re.compile(r"(?:\.[0-9]{1,3})+(?=\s?[条款项章节])")  # 第14.1.2条
_ORDINAL_WORDS = "章节条款项编部分类种个次期年季步号页回届位名卷阶层轮批方代集题组段句行列点级件版讲课篇册辑套家笔张只天周日月排档"
_ORDINAL_PAIRS = ("季度", "部分", "分编", "分册", "单元", "顺位", "梯队", "财季")
_NO_ORDINAL_WORD = {"部": "门委", "周": "期", "天": "然", "家": "庭", "课": "堂", "套": "期", "日": "元", "单": "元"}


def _read_ordinal(text: str, i: int, floor: int) -> tuple[Number | None, int]:
    """第3章, 第一百二十三条, 第一, 第3-5页: the whole from 第 to the word that is counted."""
    begin = i - 1 if text[i - 1] == "第" else i - 2
    if text[i] in "0123456789０１２３４５６７８９":
        match = ARABIC.match(text, i)
        assert match is not None
        j, value = match.end(), match.group().translate(FOLD).replace(",", "")
        if j - i > 12:
            return make(text, i, j, value, "", "identifier", False)
    else:
        run = CN_RUN.match(text, i)
        assert run is not None
        whole = chinese_to_int(run.group())
        if whole is None:
            return None, run.end()
        j, value = run.end(), str(whole)
    if text[i].isdecimal():
        if (tail := _ORDINAL_TO.match(text, j)) is not None:
            j = tail.end()
        elif (tail := _ORDINAL_PARTS.match(text, j)) is not None:
            j = tail.end()
            value += tail.group()
    elif (tail := _ORDINAL_TO_CHINESE.match(text, j)) is not None:
        j = tail.end()
    if text[j : j + 1] in tuple("方者") or text[j - 1 : j + 1] == "三人":  # 第三方, 第三者, 第三人
        return None, j
    word = j + 1 if text[j : j + 1] in SPACE and text[j : j + 1] else j
    if text.startswith(_ORDINAL_PAIRS, word):
        j = word + 2
    elif text[word : word + 1] and text[word] in _ORDINAL_WORDS:
        if text[word + 1 : word + 2] not in tuple(_NO_ORDINAL_WORD.get(text[word], "")):
            j = word + 1
    return make(text, max(begin, floor), j, value, "", "ordinal", False)


def _read_half(text: str, i: int) -> tuple[Number | None, int]:
    """半年, 半个月, 半天: half of one unit."""
    match = _HALF.match(text, i)
    if match is None or text[i - 1 : i] in tuple("上下前后大小过多各一夜"):
        return None, i + 1
    name = {"m": "month", "y": "year", "d": "day", "h": "hour", "q": "quarter"}[match.lastgroup or ""]
    return make(text, i, match.end(), "0.5", name, "duration", True)


def _read_formal(text: str, i: int) -> tuple[Number | None, int]:
    """壹佰贰拾叁元肆角伍分整, 叁年: formal numerals."""
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
    run = _FORMAL_RUN.match(text, i)
    assert run is not None
    value = chinese_to_int(run.group())
    if value is None:
        return None, run.end()
    core = Core(i, run.end(), str(value), 0, False, "c", len(run.group()) == 1, False, "")
    measure = measure_at(text, core)
    if measure is None or (core.lone and measure.unit.grade < 2):
        return None, run.end()
    return with_unit(text, core, measure)


def _read_chinese(text: str, i: int, floor: int) -> tuple[Number | None, int]:
    p = text[i - 1] if i > floor else ""
    if p == "第":
        return _read_ordinal(text, i, floor)
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
        if after and (after in "以的股多左不时" or not "\u4e00" <= after <= "\u9fff"):
            return make(text, i, j + 1, "0.5", "1", "rate", True)
        return None, j + 1
    core = chinese_at(text, i, floor)
    if core is None:
        return None, j
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
        if core.scaled or (not core.lone and core.exponent < 0):
            return make(text, core.start, core.end, core.value(), "", "other", True)
        if core.lone or not any(c in TENS or c in "万亿" for c in run.group()[1:]):
            return None, max(core.end, i + 1)
        return make(text, core.start, core.end, core.value(), "", "other", any(c in "万亿" for c in run.group()))
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
    if word == "成" and after and after in "不":
        return None
    if word == "周" and p in "上下本":
        return None
    if word == "折" and core.digits == "1" and after and after not in "，。、优出销以的左至到起":
        return None
    if (word == "门" and p == "花") or (word == "名" and p == "前"):
        return None
    if after and word + after in ("套房", "类户"):
        return None
    if word in "分点手头份张" or core.digits == "0":
        return None if word in "分点手头" or core.digits in "01" else measure
    if measure.unit.name == "期" or (word in "级代号节章款度" and measure.unit.grade == 0):
        return None
    return measure


def _is_mark(text: str, i: int, j: int, p: str) -> bool:
    left = text[max(0, i - 10) : i]
    if text[j] in ")）":
        return bool(p) and p in "（("
    return p == "\u3000" or MARK_BEFORE.search(left) is not None


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
