"""Digits that stand at Latin letters: indices, names, values stuck to an indicator's name, coefficients, addresses."""

from __future__ import annotations

import re

from .core import Core
from .measures import measure_at
from .number import Number, make
from .numerals import FOLD
from .patterns import ARABIC, DOTTED, WORD_TAIL
from .reading import arabic_at
from .units import CODES, SPACE

__all__ = ["before_letters", "in_address", "read_index"]

_TEX_WORDS = set("approx times cdot ge geq geqslant le leq leqslant ne neq pm mp div sim simeq to in equiv n".split())
_INDICATORS = set("PMI CPI PPI GDP EPS PE PB PS PEG ROE ROA ROI ROIC EBITDA EBIT LPR VIX BDI NAV IRR NPV WACC".split())
_SERIAL_CLASS = re.compile("/[A-Z][0-9]{0,3}(?![A-Za-z0-9])")  # CN 11-1081/F
_EDITION = re.compile("[:：](?:19|20)[0-9]{2}(?![0-9])")  # ISO9001:2015
_CODE = re.compile(r"[0-9]{6,40}(?:-[0-9A-Z]{1,12})*(?![0-9A-Za-z])")
_PATH = re.compile(r"[A-Za-z0-9./:@_~%?&=#-]{1,60}\Z")
_PATH_GOES_ON = re.compile(r"[0-9A-Za-z.\-]{1,60}(?:/|\.[A-Za-z]|_)")
_TIMES = re.compile("x[0-9]{1,4}(?:小时|天|[^A-Za-z0-9]?米|元|万|%)")  # 7x24小时
_TIME_OF_DAY = re.compile("[0-2][0-9]:[0-5][0-9]")


def before_letters(text: str, core: Core, p: str, raw: str) -> tuple[Number, int]:
    """A numeral that letters follow: a multiple (`0.8x`), a coefficient (`20Q`), an unknown unit, a name."""
    start, j = core.start, core.end
    n, after = text[j], text[j + 1 : j + 2]
    if "," in raw:
        return make(text, start, j, core.value(), "", "other", True)
    if n == "x" and raw.isdigit() and _TIMES.match(text, j) is not None:
        return make(text, start, j, core.value(), "", "other", True)
    before = p
    if p and p in SPACE:  # 3x + 2y, but not a list's `- 2b`
        before = text[start - 2] if start > 3 and text[start - 3] in SPACE and text[start - 4] != "\n" else ""
    if n.isalpha() and not (after.isascii() and after.isalnum()):
        operated = bool(before) and before in "=+-−–×÷/<>≤≥{$&"
        if n in "xX" and "." in raw and not operated and (not after or after not in "+-−=*^_×÷<>≤≥$\\"):
            return make(text, start, j + 1, core.value(), "1", "rate", True)
        if "." in raw and n in "PYQKXypqkx" and before and before in "为是得成":  # 本利和为1.1236P
            return make(text, start, j, core.value(), "", "other", True)
        short = len(raw) < 4 or ("." in raw and n not in "defg")  # 10.4f formats
        if short and not (raw[0] == "0" and raw.isdigit()) and (operated or (after and after in "+−=^_×÷<>≤≥")):
            return make(text, start, j, core.value(), "", "other", True)
    tail = WORD_TAIL.match(text, j)
    end = tail.end() if tail is not None else j + 1
    return make(text, start, end, text[start:end], "", "identifier", False)


def read_index(text: str, i: int, floor: int, p: str) -> tuple[Number | None, int] | None:
    """Digits stuck to a letter (d1, R2, x_1, IFRS16) or an exponent; None when they are a currency code's."""
    if text.find("://", max(0, i - 160), i) >= 0 and in_address(text, i):
        tail = WORD_TAIL.match(text, i)
        return None, tail.end() if tail is not None else i + 1
    if p.isalpha():
        if p == "T" and _TIME_OF_DAY.match(text, i) is not None and text[i - 2].isdecimal():  # 2024-08-05T09:30
            return None
        if p in "xX" and text[i - 2 : i - 1].isdecimal():  # 7x24小时
            return None
        k = i - 1
        while k > max(floor, i - 12) and text[k - 1].isascii() and text[k - 1].isalpha():
            k -= 1
        if text[k:i] in CODES or (text[k - 1 : k] == "\\" and k > 0 and text[k:i] in _TEX_WORDS):
            return None
        if text[k:i].isupper() and _is_quantity(text, i, text[k:i]):
            return None
        if text[k:i].isupper() and (code := _CODE.match(text, i)) is not None:  # GR202311001234
            return make(text, k, code.end(), text[k : code.end()], "", "identifier", False)
        kind = "formula" if i - k == 1 and text[k] not in "vV" else "identifier"
    else:
        kind = "formula" if p in "^_{" else "identifier"
    match = ARABIC.match(text, i)
    assert match is not None
    end = match.end()
    if kind == "identifier" and (tail := WORD_TAIL.match(text, end)) is not None:
        end = tail.end()
    if kind == "identifier" and (tail := DOTTED.match(text, end) or _EDITION.match(text, end)) is not None:
        end = tail.end()
    if text[i - 2 : i] == "CN" and (tail := _SERIAL_CLASS.match(text, end)) is not None:
        end = tail.end()
    return make(text, i, end, text[i:end].translate(FOLD), "", kind, False)


def _is_quantity(text: str, i: int, name: str) -> bool:
    """Whether digits stuck to capitals are their value, not a part of the name: GDP89,358元, ROE12.5%, PMI50.2."""
    core = arabic_at(text, i, i)
    raw = text[i : core.end]
    measure = measure_at(text, core) if core.end - i <= 40 else None
    if measure is not None and measure.unit.kind in ("amount", "rate", "price"):
        return len(name) > 1 or len(raw) > 1
    return name in _INDICATORS and not raw.isdigit()


def in_address(text: str, i: int) -> bool:
    """Whether i lies inside a URL or an HTML tag: looked for within a bounded distance to the left."""
    multiple = i > 2 and text[i - 2] in "xX" and text[i - 3].isdecimal()  # 15.2x/12.8x
    if text[i - 1] == "/" and i > 1 and text[i - 2].isascii() and text[i - 2].isalpha() and not multiple:
        path = _PATH.search(text, max(0, i - 60), i)
        if path is not None and ("." in path.group() or path.group().count("/") > 1):
            return True
        return _PATH_GOES_ON.match(text, i) is not None
    left = text[max(0, i - 160) : i]
    mark = left.rfind("://")
    if mark >= 0 and not re.search(r"[\s)）>\]\"'，。；、\u4e00-\u9fff]", left[mark:]):
        return True
    return False
