"""Numbers in Chinese financial text: where they stand, what they are worth, and whether they mean something.

`find_numbers` walks once over a text. A compiled regular expression finds the next character that can begin a
number; small anchored readers then read the number (`reading`), its unit and, where both fail to decide, its
surroundings (`context`). Every reader looks only a bounded distance ahead and back (digits apart, which are read
once), so the time is linear in the length of the text. All arithmetic is exact: digits are shifted as strings.
"""

from __future__ import annotations

import re
import string
from dataclasses import replace
from fractions import Fraction

from .bare import bare_number
from .chinese import read_chinese, read_formal, read_half
from .context import label_at, with_unit
from .core import Core, magnitude_at
from .letters import in_address, read_index
from .measures import RATIO_MEASURE, Measure, measure_at
from .number import Number, make
from .numerals import CN, FOLD, FORMAL, VULGAR, D, exact_decimal
from .ordinals import read_ordinal
from .patterns import AFTER_ONE, AFTER_ONE_PIECE, ARABIC, WORD_TAIL
from .ranges import try_range
from .reading import arabic_at
from .shapes import try_date, try_special
from .spoken import PER_TEN_THOUSAND, SPOKEN, try_spoken
from .units import SPACE

__all__ = ["find_numbers", "may_vary"]

_CIRCLED = {chr(base + i): i + 1 for base in (0x2460, 0x2474, 0x2488) for i in range(20)}
_CIRCLED |= {chr(0x3220 + i): i + 1 for i in range(10)}
_BEGINS = rf"[<{D}{CN}{FORMAL}半①-⒛㈠-㈩¼-¾⅓-⅞](?!(?<=一)(?<!第一)(?:[^{AFTER_ONE}]|个(?![{AFTER_ONE_PIECE}])))"
_SEED = re.compile(_BEGINS)
_NO_ORDINAL = re.compile(rf"{_BEGINS}(?<!第[{CN}{D}])(?<![{D}][{D}])(?:(?<![{CN}][{CN}])|(?<=[{CN}]{{65}}))")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,4000}>")
_CLINGING = frozenset("第_^\\@#{%=&/-.?−" + string.ascii_letters)
_AREA_PHONE = re.compile(r"[(（]0[0-9]{2,3}[)）][- ]?(?:[0-9]{7,8}|[0-9]{3,4}[- ][0-9]{4})(?![0-9])")  # (0755)82943100
_EQUALS = re.compile(r"(?:[$=≈]|\\approx)\s?\Z")  # $3.5$亿元, $P=30$元, but not $T+1$年
_ONE = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,3}|[0-9]{1,9})(?:\.[0-9]{1,6})?"
_SHARED = re.compile(  # 5.6/7.2亿元
    r"(?:[/／][0-9]{1,9}(?:\.[0-9]{1,6})?[万亿]?){0,4}[/／](?P<last>[0-9]{1,9}(?:\.[0-9]{1,6})?)(?![0-9./／])"
)
_LISTED = re.compile(  # 1、3和5年
    rf"(?P<more>(?:、[-−]?{_ONE}){{0,6}})[、和与及][-−]?(?P<last>{_ONE})(?![0-9.、])"
)
_STAGES = re.compile(r"\+(?P<more>)(?P<last>[0-9]{1,2})(?=年)")  # 期限为3+2年
_GOES_ON = {"/": _SHARED, "／": _SHARED, "+": _STAGES} | dict.fromkeys("、和与及", _LISTED)
_PER_MANY = re.compile(r"(?P<many>10{1,3})万分之(?P<top>[0-9]{1,9}(?:\.[0-9]{1,9})?)")  # 10万分之3


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
            number, position = read_half(text, i)
        elif c in VULGAR:
            number, position = _read_vulgar(text, i)
        elif c in FORMAL:
            number, position = read_formal(text, i)
        else:
            number, position = read_chinese(text, i, floor)
        if number is not None:
            if text.startswith("$", number.end) and number.start > floor and text.startswith("$\\", number.start - 1):
                start, end = number.start - 1, number.end + 1  # $\$1{,}000$
                number = replace(number, text=text[start:end], start=start, end=end)
            if found and number.start - found[-1].end == 1:
                number = _in_list(text, found[-1], number)
            elif found and number.kind == "amount" and found[-1].kind == "price" and _is_step(text, found[-1], number):
                number = replace(number, unit=found[-1].unit, kind="price")
            elif found and number.start == found[-1].end and number.unit == "分" and found[-1].unit == "hour":
                number = replace(number, unit="minute", kind="duration", variable=True)  # 4小时30分
            elif number.kind == "other" and not number.variable and number.end - number.start > 1:
                if found and _paired(text, found[-1], number):  # 甲出三百，乙出五十
                    number = replace(number, variable=True)
            elif number.unit == "层" and found and number.start == floor and found[-1].text[-1] in "号栋幢座楼":
                number = replace(number, unit="", kind="ordinal", variable=False)  # 15号10层
            found.append(number)
            floor = number.end
    return found


def may_vary(text: str) -> bool:
    """Whether any number of a text may be a variable; where not, all that `find_numbers` finds stands behind 第."""
    return _NO_ORDINAL.search(text) is not None


def _paired(text: str, last: Number, number: Number) -> bool:
    """Whether a bare Chinese numeral stands shortly behind another one that means a sum: 甲出三百，乙出五十."""
    both = last.kind == "other" and last.variable and number.text[0] in CN and last.text[0] in CN
    return both and number.start - last.end <= 10 and "。" not in text[last.end : number.start]


_SCALED = frozenset("百千万亿")
_STEP = re.compile("[增升降调减提涨跌上下加少高低改变更回落整]{1,3}[至到为]")
_LATER = re.compile("([0-9]{2})年?")  # 2024/25/26年
_TIMES = re.compile(r"(?:[、和与及][0-9.]{1,9}){0,8}倍")  # PE为20、16、14倍


def _is_step(text: str, last: Number, number: Number) -> bool:
    """Whether a price becomes the money behind it: 每股派息由0.12港元增至0.15港元."""
    return last.unit.startswith(f"{number.unit}/") and _STEP.fullmatch(text, last.end, number.start) is not None


def _in_list(text: str, last: Number, number: Number) -> Number:
    """A number that goes on from the one before it: 第五十条、五十一条 are ordinals, 弹性为0.3与0.7 are rates."""
    if text[last.end] in "/／" and last.kind == "price" and f"{number.unit}/" in last.unit:  # 每股收益0.5/0.6元
        return replace(number, unit=last.unit, kind="price") if number.kind == "amount" else number
    if last.kind == "date" and text[last.end] in "/、" and len(last.value) == 4:
        later = _LATER.fullmatch(number.text)
        if later is not None and (value := last.value[:2] + later.group(1)) > last.value:
            return replace(number, value=value, unit="", kind="date", variable=False)
    if text[last.end] not in "、和与至或及到,，":
        return number
    if last.kind == "price" and text[last.end] not in ",，" and last.unit.startswith(f"{number.unit}/"):
        # 每张1,010元和990元, EPS为0.84、1.08及1.37元, but not 每股5元及2亿元
        if _SCALED.isdisjoint(number.text) or not _SCALED.isdisjoint(last.text):
            return replace(number, unit=last.unit, kind="price")
    if number.kind == "count" and last.kind == "ordinal" and last.text[-1] == number.text[-1]:
        return replace(number, unit="", kind="ordinal", variable=False)
    if last.kind == "ordinal" and last.text[0] == "第" and number.kind == "count" and number.unit in "项条款页题期批":
        if last.text[-1].isdecimal() or last.text[-1] in CN:  # 第1、2项
            return replace(number, unit="", kind="ordinal", variable=False)
    listed = number.kind == "other" and last.kind == "rate" and last.text.isascii()
    if listed and ("." in number.text or _TIMES.match(text, number.end) is not None):
        if last.text[-1].isdigit() and last.low is None and "/" not in last.text and ":" not in last.text:
            return replace(number, unit="1", kind="rate", variable=True)
    return number


def _read_arabic(text: str, i: int, floor: int) -> tuple[Number | None, int]:
    p = text[i - 1] if i else ""
    if p in _CLINGING or (i > 1 and p in SPACE and text[i - 2] == "第"):
        clinging = _read_clinging(text, i, floor, p)
        if clinging is not None:
            return clinging
    core = arabic_at(text, i, floor)
    j = core.end
    n = text[j : j + 1]
    if n and p and n in ")）$" and core.start == i > floor and (enclosed := _read_enclosed(text, core)) is not None:
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
        if p == "万" and core.start == i > floor and PER_TEN_THOUSAND.search(text, max(floor, i - 12), i) is not None:
            return make(text, i - 1, j, core.value(-4), "1", "rate", True)
    if j - i > 40:
        return make(text, i, j, text[i:j].translate(FOLD), "", "identifier", False)
    measure = measure_at(text, core)
    if n and n in "-–—" and p and p in "表图例式" and measure is None:  # 表3-7 分产品收入
        label = label_at(text, core, text[max(0, i - 14) : i], text[i:j], text[i:j].isdigit())
        if label is not None:
            return label
    ranged = try_range(text, core, measure)
    if ranged is not None:
        return ranged
    if measure is None:
        goes_on = _GOES_ON.get(n)
        if goes_on is not None and (shared := goes_on.match(text, j)) is not None:
            return _read_shared(text, core, shared) or bare_number(text, core, floor)
        return bare_number(text, core, floor)
    if measure.unit.grade == 1 and not core.scaled and j - i <= 3:
        label = label_at(text, core, text[max(0, i - 14) : i], text[i:j], text[i:j].isdigit())
        if label is not None:
            return label
    return with_unit(text, core, measure)


def _read_shared(text: str, core: Core, match: re.Match[str]) -> tuple[Number, int] | None:
    """`5.6/7.2亿元`, `1、3和5年`: the unit of the last number is the first one's too."""
    last = arabic_at(text, match.start("last"), match.start("last"))
    measure = measure_at(text, last)
    if measure is None or core.currency or (core.scaled and not last.scaled) or measure.add is not None:
        return None
    kind, count = measure.unit.kind, match.group().count(text[core.end])
    if measure.unit.grade < 2 or kind == "index":
        return None
    if kind == "duration" and measure.unit.name == "year" and len(core.digits) > 1:  # 2024/2025年, 24/25/26年
        if len(core.digits) == 4 or len(last.digits) == 4 or int(last.digits) == int(core.digits) + count:
            return None
    if match.re is _SHARED:
        if kind == "duration" and count == 1 and text[core.start - 1 : core.start] not in ("/", "／"):  # 2/10年期
            return None
    else:
        left = text[max(0, core.start - 14) : core.start]
        alone = not match.group("more") and text[core.start - 1 : core.start] != "、"
        if kind == "rate" and alone and text[last.end] in "%％":  # 1.2和5%
            return None
        if label_at(text, core, left, text[core.start : core.end], core.exponent == 0) is not None:
            return None
    _, power = magnitude_at(text, match.end())
    exponent = core.exponent if core.scaled else core.exponent + power
    return with_unit(text, core._replace(exponent=exponent), Measure(core.end, measure.unit))


def _read_vulgar(text: str, i: int) -> tuple[Number, int]:
    """½年, ¾: a share where no unit stands behind it."""
    core = Core(i, i + 1, "", 0, False, "a", False, True, "", Fraction(*VULGAR[text[i]]))
    return with_unit(text, core, measure_at(text, core) or RATIO_MEASURE._replace(end=i + 1))


def _read_clinging(text: str, i: int, floor: int, p: str) -> tuple[Number | None, int] | None:
    """What the character before the digits makes of them: an ordinal, an index, a part of an address; None for none."""
    if p == "第" or p in SPACE:
        return read_ordinal(text, i, floor)
    if p == "\\" and text[i - 2 : i - 1] == "\\":  # a new row of a LaTeX matrix
        return None
    if p.isalpha() or p in "_^\\@#" or (p == "{" and text[i - 2 : i - 1] in ("^", "_")):
        index = read_index(text, i, floor, p)
        if index is not None:
            return index
    if p in "%=&/_-.?" and in_address(text, i):
        tail = WORD_TAIL.match(text, i)
        return None, tail.end() if tail is not None else i + 1
    if p in "-−" and text[i - 2 : i - 1] == "{" and text[i - 3 : i - 2] in ("_", "^"):  # x_{-1}
        match = ARABIC.match(text, i)
        assert match is not None
        return make(text, i - 1, match.end(), "-" + match.group(), "", "formula", False)
    return None


def _read_enclosed(text: str, core: Core) -> tuple[Number, int] | None:
    """`(12,345.67)万元`, a negative of the accountant, and `$3.5$亿元`: the unit stands behind the closing sign."""
    i, j = core.start, core.end
    if text[i] == "0" and (phone := _AREA_PHONE.match(text, i - 1)) is not None:
        return make(text, i - 1, phone.end(), phone.group().translate(FOLD), "", "identifier", False)
    negative = text[j] != "$"
    if negative and (text[i - 1] not in "(（" or ("." not in text[i:j] and j - i < 3)):
        return None
    if not negative and (text[j + 1 : j + 2] == "\\" or _EQUALS.search(text, max(0, i - 8), i) is None):  # 8$\%$
        return None
    end, power = magnitude_at(text, j + 1)
    core = core._replace(end=end, exponent=core.exponent + power, scaled=bool(power) or core.scaled)
    if negative:
        core = core._replace(start=i - 1, negative=True)
    measure = measure_at(text, core)
    if measure is None or measure.unit.grade < 2:
        return None
    if negative and measure.unit.kind not in ("amount", "price", "rate"):
        return None
    return with_unit(text, core, measure)


