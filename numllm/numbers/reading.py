"""Reads one numeral at a place where it begins: its sign, separators, magnitude, exponent or fraction."""

from __future__ import annotations

import re
from fractions import Fraction

from .captions import closes_unit
from .core import MANY, Core, magnitude_at
from .measures import unit_at
from .numerals import DIGITS, FOLD, VULGAR, chinese_to_int, exact_decimal
from .patterns import ARABIC, CN_RUN
from .units import CODES, MAGNITUDES, SIGNS, SPACE, UNITS

__all__ = ["arabic_at", "chinese_at"]

_WIDE_COMMA = re.compile(r"(?:，[0-9]{3}){0,4}，000(?![0-9，,.])|(?:，[0-9]{3}){1,4}\.[0-9]{2}(?![0-9])")
_SPACED = re.compile(
    r"[0-9]{1,3}(?:[ \u00a0\u2009\u202f][0-9]{3})+(?![0-9])(?:\.[0-9]+)?|"
    r"[０-９]{1,3}(?:[ \u3000][０-９]{3})+(?![０-９])(?:[.．][０-９]+)?"
)
_GROUPED_CELL = re.compile(r"[0-9],[0-9]{3}(?:\.[0-9]{1,4})?\Z")  # 8,215.6 -12.4%
_ENTRY = re.compile(r"[借贷][：:][^。\n]{0,38}\Z")  # 贷：银行存款 542 400
_CN_FRACTION = re.compile("点([零〇○一二三四五六七八九]{1,32})(百万|千万|百亿|千亿|万亿|[万亿])?")
_MIXED = re.compile(r"([0-9]+(?:\.[0-9]+)?)([十百千]?[万亿]|[百千])")
_THOUSANDS = re.compile("([0-9])千(?:([0-9])百)?(?:([0-9])十)?(?<=[百十])([万亿])")  # 2千9百万
_SHORT_TENTH = re.compile(r"([0-9]{1,4})万([1-9])(?=[。，；、！？)）]|\Z)")
_LATIN_BEFORE = re.compile("[A-Za-z/]")  # EUR/USD 1.0850 is a rate of exchange
_ENGLISH = re.compile(  # US$1.2 billion, $300M
    r"(?:(K|\s?(?:k|thousand))|(MM?|\s?(?:mn?|mm|million))|(B|\s?(?:bn?|billion))|(T|\s?(?:tn|trillion)))(?![A-Za-z])"
)
_POWER = re.compile(  # 1.5×10^6, 6.02×10²³, 1.2\\times10^{5}
    r"\s?(?:[×✕*]|\\times)\s?10(?:\^\{?\s?(?P<plain>[-−]?[0-9]{1,3})(?![0-9.])\s?\}?|(?P<raised>⁻?[⁰¹²³⁴-⁹]{1,3}))"
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_HUNDRED_MILLIONS = re.compile("个[多余]?亿")  # 1.5个亿


_AND_PART = re.compile("又([0-9]{1,4})/([0-9]{1,4})(?![0-9/])")  # 1又1/2
_FOLLOWS = frozenset("十百千万亿×✕*\\个，又kKmMbBtT" + MANY).union(VULGAR)
_CHANGE = re.compile(r"(?<![A-Za-z])(?i:yoy|qoq|mom|hoh|wow)[ \t]?\Z")  # QoQ-1.3%
_GAPS = frozenset(SPACE)
_LEADS = frozenset("-−－﹣–负").union((sign[-1] for sign in SIGNS), (code[-1] for code in CODES))


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
            if r == "）" and "填列" in text[max(0, start - 6) : start - 2]:  # 损失以“-”号填列）-1,234.56
                r = ""
            elif q == " " and r.isdigit() and _GROUPED_CELL.search(text, max(0, start - 14), start - 2) is not None:
                r = ""
            elif q in (" ", "\t") and r in ("）", ")") and closes_unit(text, start - 2):  # 净额（万元） -4,512.37
                r = ""
            closed = r.isascii() and (r.isalnum() or r in ")]}%'\"")
            if closed and _CHANGE.search(text, max(0, start - 6), start - 1) is not None:
                closed = False
            if text[i : i + 2].isdigit() and text[i] == "0":  # 记-0035
                break
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
    if j < len(text) and text[j] in SPACE and len(raw) <= 3 and text[j + 1 : j + 4].isdecimal():
        spaced = _SPACED.match(text, i)
        if spaced is not None and (
            len(raw) < 3
            or "000" in spaced.group().translate(FOLD)[len(raw) :]
            or _ENTRY.search(text, max(0, i - 40), i) is not None
            or unit_at(text, magnitude_at(text, spaced.end())[0])
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
    p = text[i - 1] if i > floor else ""
    if p in _LEADS or (p in _GAPS and text[i - 2 : i - 1] in _LEADS):
        start, negative, currency = _before(text, i, floor)
    c = text[j : j + 1]
    if c in _FOLLOWS or (c in _GAPS and text[j + 1 : j + 2] in _FOLLOWS):
        return _follow(text, i, Core(start, j, digits, exponent, negative, "a", False, False, currency))
    return Core(start, j, digits, exponent, negative, "a", False, False, currency)


def _follow(text: str, i: int, core: Core) -> Core:
    """The Arabic numeral from i to core.end with what makes it larger: 万, 3000多万, ×10^6, 1.2 billion."""
    j, digits, exponent = core.end, core.digits, core.exponent
    scaled = False
    c = text[j]
    if c in VULGAR and exponent == 0:  # 1½
        value = int(digits) + Fraction(*VULGAR[c])
        return core._replace(end=j + 1, scaled=True, fraction=-value if core.negative else value)
    if c == "又" and exponent == 0 and (part := _AND_PART.match(text, j)) is not None and int(part.group(2)):
        value = int(digits) + Fraction(int(part.group(1)), int(part.group(2)))
        return core._replace(end=part.end(), scaled=True, fraction=-value if core.negative else value)
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
                if text[j : j + 1] in tuple(MANY) and (many := magnitude_at(text, j + 1))[1]:  # 4.5万多亿
                    j, exponent = many[0], exponent + many[1]
            scaled = True
    elif c == "个" and (hundreds := _HUNDRED_MILLIONS.match(text, j)) is not None:
        j, exponent, scaled = hundreds.end(), exponent + 8, True
    elif c and c in MANY and (many := magnitude_at(text, j + 1))[1]:  # 3000多万
        j, exponent, scaled = many[0], exponent + many[1], True
    if not scaled and (power := _POWER.match(text, j)) is not None:
        raised = power.group("plain") or power.group("raised").translate(_RAISED)
        j, exponent, scaled = power.end(), exponent + int(raised.replace("−", "-")), True
    if core.currency and not scaled and (english := _ENGLISH.match(text, j)) is not None:
        j, exponent, scaled = english.end(), exponent + 3 * (english.lastindex or 0), True
    return core._replace(end=j, digits=digits, exponent=exponent, scaled=scaled)


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
    if (thousands := _THOUSANDS.match(text, i)) is not None:
        parts = zip(thousands.groups("0"), (1000, 100, 10), strict=False)
        whole = sum(int(digit) * worth for digit, worth in parts)
        return thousands.end(), Fraction(whole) * 10 ** MAGNITUDES[thousands.group(4)]
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
    if c and c in MANY and (many := magnitude_at(text, j + 1))[1]:  # 两百多亿
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


