"""Dates, times, ratios, fractions, telephone numbers: numbers of several parts."""

from __future__ import annotations

import re
from fractions import Fraction

from .core import Core
from .number import Number, make
from .numerals import FOLD, D, chinese_to_int, exact_decimal
from .patterns import DOTTED, INDEX_CUE, MOVED
from .spoken import DAYTIME
from .units import SPACE

__all__ = ["decade_at", "iso_date", "try_date", "try_special"]

_DECADE = re.compile(r"([0-9]{1,2}|[一二十]{1,3})世纪([1-9]0|[一二三四五六七八九]?十)年代")
_YEAR_DATE = re.compile(
    rf"(?P<y>[{D}]{{4}})\s?年(?:代|\s?(?P<m>[{D}]{{1,2}})\s?月(?:份|\s?(?P<d>[{D}]{{1,2}})\s?[日号])?)?"
)
_SHORT_YEAR = re.compile(r"(?:[5-9][0-9]年(?:代|初|末|底)|[0-9]{2}年\s?[0-9]{1,2}月(?:\s?[0-9]{1,2}日)?)")
_FORECAST_YEAR = re.compile(
    r"[23][0-9]年(?=\s?(?:[0-9.]+(?:[-–~～至][0-9.]+)?[倍xX]|P/?[EBS]|EPS|归母|净利|营收|业绩|盈利预测))"
)
_STRETCH = re.compile("(?:过去|未来|今后|连续|[近前后这每历满长达约超期限])\\Z")
_MASKED_YEAR = re.compile(
    r"(?P<y>[12２][0-9０-９]?[×xX＊*✕╳][0-9０-９l×xX＊*]{1,2}|[12][0-9][×xX＊*✕╳]{1,2}[0-9０-９l]{0,2}|"
    r"[12][0-9]{2}[×xX＊*✕╳])"
    r"(?:\s?年(?:\s?(?P<m>[0-9０-９]{1,2})\s?月(?:份|\s?(?P<d>[0-9０-９]{1,2})\s?[日号])?)?"
    r"|(?=\s?[-—–~～至到]\s?[12][0-9]?[×xX＊*✕╳0-9]{1,3}\s?年))"
)
_MASK = str.maketrans("×x＊*✕╳l", "XXXXXX1")
_MONTH_DATE = re.compile(rf"(?P<m>[{D}]{{1,2}})\s?月(?:份|\s?(?P<d>[{D}]{{1,2}})\s?[日号])?")
_FISCAL_YEAR = re.compile(
    r"(?P<y>(?:19|20)[0-9]{2})/(?P<z>[0-9]{2})(?=\s?(?:[学财]?年|会计年|榨季|作物|[产销]季|赛季))年?"
)
_ISO_DATE = re.compile(
    r"(?P<y>[12][0-9]{3})(?P<s>[-/.．])(?P<m>0?[1-9]|1[0-2])(?:(?P=s)(?P<d>3[01]|[12][0-9]|0?[1-9]))?(?![0-9.%])"
)
_SLASH_DATE = re.compile(  # 06/03/2022 is of June, 15/03/2024 of March
    r"(?:(?P<m>0?[1-9]|1[0-2])/(?P<d>3[01]|[12][0-9]|0?[1-9])|(?P<day>3[01]|2[0-9]|1[3-9])/(?P<month>0?[1-9]|1[0-2]))"
    r"/(?P<y>(?:19|20)[0-9]{2})(?![0-9/])"
)
_TIME = re.compile(r"(?:[01]?[0-9]|2[0-4])[:：][0-5][0-9](?:[:：][0-5][0-9])?(?![0-9])")
_SHORT_DATE = re.compile(r"(?P<m>0?[1-9]|1[0-2])/(?P<d>3[01]|[12][0-9]|0?[1-9])(?![0-9/.%％])")  # 08/27
_DATED_BEFORE = re.compile(r"(?:于|[自从]|截[至止]|(?:日期|时间|日)[:：为是]?)\s?\Z")
_DOI = re.compile(r"10\.[0-9]{4,9}/[A-Za-z0-9._;()/:<>\-]{1,120}(?<![.;:(])")
_HOUR = re.compile("([0-9]{1,2})[时点](?![0-9])")
_CLOCK = re.compile(
    r"([0-9]{1,2})\s?[时点](?:\s?([0-9]{1,2})\s?分(?!之)|整|半|(?=[前后至到起止许内为开召举截结关发、,，。]))"
)
_NO_CLOCK = re.compile(r"(?:[=＝<>≤≥＜＞$]\s?|[大小等高低]于|为)\Z")
_RATIO = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:\s?[:：∶]\s?[0-9]+(?:\.[0-9]+)?){1,8}")
_CITED_YEAR = re.compile(r"(?:(?<=[，,])|(?<=[，,] ))(?:19|20)[0-9]{2}[:：](?!1)")  # 出版社，2016：23
_NAMED_DAY = re.compile(r"(0?[1-9]|1[0-2])·(3[01]|[12][0-9]|0?[1-9])(?![0-9·])")  # “3·15”晚会
_RATIO_AFTER = re.compile("的?(?:比[例率价]|杠杆|配[比股资])")  # 1:20的杠杆
_RATIO_BEFORE = re.compile("(?:杠杆|比[例率价]|配[比股资]|赔率|[盈亏]比)[^，。；、0-9]{0,6}\\Z")
_AFTER_TIME = frozenset("收开前后起止")  # 10:30收盘 is no ratio
_RATIO_TO = re.compile(
    r"\s?[至到\-–—~～]\s?(?P<top>[0-9]{1,6}(?:\.[0-9]+)?)[:：∶](?P<bottom>[0-9]{1,6}(?:\.[0-9]+)?)(?![:：∶0-9])"
)
_SPOKEN_RATIO = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?比([0-9]{1,6}(?:\.[0-9]{1,6})?)(?![0-9.,%％万亿年月日元])")
_STANDARD = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,3})*[:：\-—–](?:19|20)[0-9]{2}(?![0-9])")  # ISO 9001:2015
_STANDARD_NAME = re.compile(r"(?<![A-Za-z])(?:[A-Z]{2,6}|(?:[A-Z]{2,4}|DB[0-9]{2})/[TZ])\s?\Z")
_SLASH = re.compile(rf"[/／]([{D}]{{1,12}})(?![{D}/／.年岁]|周岁)")
_CREDIT_TERMS = re.compile(r"[0-9]+/[0-9]+(?:[,，、;；\s]{0,2}[0-9]+/[0-9]+){0,4}[,，、;；\s]{0,2}[nN]/[0-9]+")
_ISSUE = re.compile(r"\s?第\s?[0-9０-９]{1,6}\s?号")
_BRACKET_ISSUE = re.compile(
    r"\\?[〕\]］)）】]\s?(?:(?:第\s?)?[A-Z]{0,4}[0-9０-９]{1,14}(?:-[0-9]{1,3})?\s?号|"
    r"[\u4e00-\u9fff0-9]{1,14}(?:[民刑行商知][初终再申监辖特]|执[恢异保]?|[破仲刑民行商]|"
    r"字)第?[0-9]{1,7}(?:-[0-9]{1,3})?号)"  # （2023）京01民初123号
)
_PHONE = re.compile(
    r"(?:0[0-9]{2,3}[-－](?:[0-9]{7,8}|[0-9]{3,4} [0-9]{4})(?:-[0-9]{1,5})?|1[3-9][0-9]{9}"
    r"|1[3-9][0-9][- ][0-9]{4}[- ][0-9]{4}"
    r"|400[0-9]-[0-9]{3}-[0-9]{3}|400[-－ ]?[0-9]{3}[-－ ]?[0-9]{4}"
    r"|86[- ](?:1[3-9][0-9][- ]?[0-9]{4}[- ]?[0-9]{4}|[0-9]{2,3}[- ][0-9]{7,8}))(?![0-9])"
)


def iso_date(year: str | None, month: int | None, day: int | None) -> str:
    """The date in ISO 8601's form, of the parts that are known."""
    parts = [year if year is not None else "-"] if year is not None or month is not None else []
    if month is not None:
        parts.append(f"{month:02d}")
    if day is not None:
        parts.append(f"{day:02d}")
    return "-".join(parts)


def decade_at(text: str, i: int) -> tuple[Number, int] | None:
    """`20世纪80年代`, `二十世纪八十年代`: the decade that begins at i, in ISO 8601's three digits (198)."""
    decade = _DECADE.match(text, i)
    if decade is None:
        return None
    century, tens = (chinese_to_int(part) if part[0] > "9" else int(part) for part in decade.groups())
    if not century or not tens or not 1 <= century <= 21:
        return None
    return make(text, i, decade.end(), f"{10 * (century - 1) + tens // 10}", "", "date", False)


def _forecast_year(text: str, i: int) -> re.Match[str] | None:
    """`25年` of a forecast: 给予25年15倍PE, 对应24/25/26年PE; None for a duration (过去25年净利润)."""
    year = _FORECAST_YEAR.match(text, i)
    return year if year is not None and _STRETCH.search(text, max(0, i - 3), i) is None else None


def _dated(text: str, match: re.Match[str]) -> tuple[Number, int] | None:
    groups = match.groupdict()
    year = groups.get("y")
    month = int(groups["m"]) if groups.get("m") else None
    day = int(groups["d"]) if groups.get("d") else None
    if (month is not None and not 1 <= month <= 12) or (day is not None and not 1 <= day <= 31):
        return None
    if year is not None and not (year.isascii() and year.isdigit()):
        year = year.translate(FOLD).translate(_MASK)
    return make(text, match.start(), match.end(), iso_date(year, month, day), "", "date", False)


def try_date(text: str, i: int, j: int, n: str) -> tuple[Number, int] | None:
    """A date that begins at i, where the digits end at j and n is the character behind them."""
    k = n if n not in SPACE else text[j + 1 : j + 2]
    match = None
    if k in "年" and k:
        match = _YEAR_DATE.match(text, i)
        if match is not None:
            issue = _ISSUE.match(text, match.end()) if match.group("m") is None else None
            if issue is not None:
                return make(text, i, issue.end(), text[i : issue.end()].translate(FOLD), "", "identifier", False)
        elif j - i == 2:
            short = _SHORT_YEAR.match(text, i) or _forecast_year(text, i)
            if short is not None:
                return make(text, i, short.end(), text[i:j], "", "date", False)
    elif k and k in "×xX＊*✕╳" and text[i] in "12２":
        match = _MASKED_YEAR.match(text, i)
    elif k == "世":
        return decade_at(text, i)
    elif k == "月":
        match = _MONTH_DATE.match(text, i)
        if match is not None and text[i - 1 : i] == "近" and match.group()[-1] == "月":  # 近6月
            return make(text, i, match.end(), str(int(match.group("m"))), "month", "duration", True)
    elif n in "-/.．" and j - i == 4:
        fiscal = _FISCAL_YEAR.match(text, i)
        if fiscal is not None and int(fiscal.group("z")) == (int(fiscal.group("y")) + 1) % 100:
            return make(text, i, fiscal.end(), fiscal.group("y"), "", "date", False)
        match = _ISO_DATE.match(text, i)
    elif j - i == 4 and n in "〕]］)）】\\" and text[i - 1 : i] in tuple("〔[［(（【"):
        issue = _BRACKET_ISSUE.match(text, j)
        if issue is not None:
            start = i - 2 if text[i - 2 : i - 1] == n == "\\" else i - 1  # \[2017\]7号
            span = text[start : issue.end()].translate(FOLD)
            return make(text, start, issue.end(), span, "", "identifier", False)
    return _dated(text, match) if match is not None else None


def try_special(text: str, i: int, core: Core, n: str) -> tuple[Number, int] | None:
    """Times, ratios, fractions, credit terms, telephone numbers and dotted identifiers that begin at i."""
    j = core.end
    if n in ":：-—–." and core.exponent >= -3 and j - i <= 10 and (standard := _STANDARD.match(text, i)) is not None:
        if _STANDARD_NAME.search(text, max(0, i - 8), i) is not None:
            return make(text, i, standard.end(), standard.group(), "", "identifier", False)
    if n == "比" and (spoken := _SPOKEN_RATIO.match(text, i)) is not None and Fraction(spoken.group(1)):
        value = Fraction(core.value()) / Fraction(spoken.group(1))
        return make(text, i, spoken.end(), exact_decimal(value), "1", "rate", True)
    if n in ":：∶" or (n == " " and text[j + 1 : j + 2] in ("∶", ":")):
        match = _RATIO.match(text, i)
        if match is not None and not core.scaled and len(match.group()) <= 60:
            clock = _TIME.match(text, i)
            left = text[max(0, i - 4) : i]
            ratio = (
                _RATIO_AFTER.match(text, match.end()) is not None
                or (any(c in left for c in "比例按率") and text[match.end() : match.end() + 1] not in _AFTER_TIME)
                or _RATIO_BEFORE.search(text, max(0, i - 12), i) is not None
            )
            if clock is not None and clock.end() == match.end() and not ratio:
                return make(text, i, clock.end(), clock.group().replace("：", ":"), "", "time", False)
            if not ratio and _CITED_YEAR.match(text, i) is not None:
                return make(text, i, j, core.digits, "", "date", False)
            parts = re.split(r"\s?[:：∶]\s?", match.group())
            if len(parts) == 2 and Fraction(parts[1]):
                value = exact_decimal(Fraction(parts[0]) / Fraction(parts[1]))
                if (to := _RATIO_TO.match(text, match.end())) is not None and Fraction(to.group("bottom")):
                    return _ratio_range(text, i, Fraction(parts[0]) / Fraction(parts[1]), to)
            else:
                value = ":".join(parts)
            return make(text, i, match.end(), value, "1", "rate", True)
    elif n == "/" and core.exponent <= -4 and (doi := _DOI.match(text, i)) is not None:
        return make(text, i, doi.end(), doi.group(), "", "identifier", False)
    elif n in "/／" and core.exponent == 0 and not core.scaled:
        terms = _CREDIT_TERMS.match(text, i)
        if terms is not None:
            return make(text, i, terms.end(), terms.group(), "", "other", False)
        dated = _SLASH_DATE.match(text, i)
        if dated is not None:
            month, day = dated.group("m") or dated.group("month"), dated.group("d") or dated.group("day")
            return make(text, i, dated.end(), f"{dated.group('y')}-{month:0>2}-{day:0>2}", "", "date", False)
        short = _SHORT_DATE.match(text, i)
        if short is not None and (text[i] == "0" or _DATED_BEFORE.search(text, max(0, i - 5), i) is not None):
            return _dated(text, short)
        slash = _SLASH.match(text, j)
        if (
            slash is not None
            and text[i - 1 : i] != "/"
            and len(core.digits) <= 12
            and (int(core.digits) < int(slash.group(1)) or int(core.digits) + int(slash.group(1)) == 100)  # 60/40
        ):
            value = Fraction(int(core.digits), int(slash.group(1)))
            return make(
                text, core.start, slash.end(), exact_decimal(-value if core.negative else value), "1", "rate", True
            )
    elif n in "-－" or (n == " " and text.startswith(("86 ", "400 "), i)):
        phone = _PHONE.match(text, i)
        if phone is not None:
            return make(text, i, phone.end(), phone.group(), "", "identifier", False)
    elif n in ".．" and text[j + 1 : j + 2].isalnum() and text[j + 1].isascii():
        iso = _ISO_DATE.match(text, i)
        if iso is not None and iso.group("d"):
            return _dated(text, iso)
        dotted = DOTTED.match(text, j)
        if dotted is not None and not core.currency:
            value = text[i : dotted.end()].translate(FOLD)
            return make(text, i, dotted.end(), value, "", "identifier", False)
    elif n in "时点 ":
        if n == " " and j - i == 3 and text[i] == "1" and (phone := _PHONE.match(text, i)) is not None:  # 138 0013 8000
            return make(text, i, phone.end(), phone.group(), "", "identifier", False)
        day = DAYTIME.search(text, max(0, i - 2), i) if i and text[i - 1] in "午上晚晨早" else None
        clock = _CLOCK.match(text, i)
        late = day is not None and day.group("late") is not None
        if clock is None and day is not None and (hour := _HOUR.match(text, i)) is not None:
            hours = int(hour.group(1))
            if hours <= 24:
                return make(text, i, hour.end(), f"{hours + 12 * (late and hours < 12):02d}:00", "", "time", False)
        if clock is not None and clock.group(2) is None:  # 当Q=10时, 下调14点: no time of day
            no_clock = MOVED if n == "点" else _NO_CLOCK
            if no_clock.search(text, max(0, i - 3), i) is not None:
                return None
        if clock is not None and int(clock.group(1)) <= 24 and not INDEX_CUE.search(text[max(0, i - 16) : i]):
            minute, hours = clock.group(2) or ("30" if clock.group().endswith("半") else "00"), int(clock.group(1))
            hours += 12 * (late and hours < 12)
            return make(text, i, clock.end(), f"{hours:02d}:{minute:0>2}", "", "time", False)
    elif n == "·" and (named := _NAMED_DAY.match(text, i)) is not None:
        month, day = named.groups()
        return make(text, i, named.end(), f"--{month:0>2}-{day:0>2}", "", "date", False)
    return None


def _ratio_range(text: str, i: int, first: Fraction, to: re.Match[str]) -> tuple[Number, int]:
    """`1:10到1:20`: two ratios, the smaller one first whichever is written first."""
    second = Fraction(to.group("top")) / Fraction(to.group("bottom"))
    low, high = exact_decimal(min(first, second)), exact_decimal(max(first, second))
    return Number(text[i : to.end()], i, to.end(), low, "1", "rate", True, low, high), to.end()
